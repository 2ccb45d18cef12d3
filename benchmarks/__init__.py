"""Experiments: each a committed command, with its results as committed JSON beside it."""
