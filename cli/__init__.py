"""The command line, installed as ``netgraft.cli``."""

from __future__ import annotations
