"""Faster, smaller computation of the same loss."""
