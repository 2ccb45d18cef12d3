"""Speed, as ratios measured side by side in one run: ``python -m benchmarks.speed [NAME ...]``."""

from __future__ import annotations
