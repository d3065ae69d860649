"""Bytes on disk to a padded batch."""
