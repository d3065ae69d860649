"""Flan-T5 and the other T5 models: encoder-decoder, trained on question-answer pairs."""
