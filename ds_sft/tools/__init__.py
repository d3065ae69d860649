"""What the verbs of `ds-sft` do; none of them loads torch."""
