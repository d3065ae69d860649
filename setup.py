"""All metadata is in setup.cfg, but for the list of packages: one of them lies outside of the package's folder."""

from setuptools import find_packages, setup

# People look for ds_configs/ beside the package; installed, it lies inside.
setup(packages=[*find_packages(include=["ds_sft*"]), "ds_sft.ds_configs"])
