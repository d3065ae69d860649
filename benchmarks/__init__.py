"""Measurements: the training benchmark (`python -m benchmarks.run`), and parts of the package beside a peer."""
