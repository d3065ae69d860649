"""`ds-sft plan`: memory, steps, disk and time of a run before it is one; no torch."""
