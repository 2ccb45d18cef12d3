"""Grids of distillation runs: what is computed, how it is run, and how it is shown."""

from __future__ import annotations
