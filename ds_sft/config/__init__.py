"""Flags and recipes become settings; every fault is found here, before anything heavy is loaded."""
