"""How many of timm's and torchvision's classifiers split, into how many blocks, and how exactly."""

from __future__ import annotations
