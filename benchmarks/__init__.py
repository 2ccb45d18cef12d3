"""Experiments: each a committed command, with its results as committed JSON beside it."""

from __future__ import annotations
