"""The loop: transformers' Trainer with few changes, each with its reason."""
