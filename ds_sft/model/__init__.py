"""Things done to any model."""
