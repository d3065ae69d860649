"""`python -m ds_sft` runs the main job, exactly as `python ds_sft/train.py` does."""

import runpy

if __name__ == "__main__":
    # As a program, so that it hears signals while it still imports.
    runpy.run_module("ds_sft.train", run_name="__main__")
