"""`ds-sft report`: what a run was and what happened in it, as one page, one picture and one JSON file."""
