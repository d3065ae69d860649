"""Yuan 2.0 (dense) as a model of its own: equation for equation the published one, with documents kept apart."""
