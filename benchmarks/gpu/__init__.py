"""What a GPU changes, by one command: ``python -m benchmarks.gpu --out DIR``; see ``docs/gpu.md``."""

from __future__ import annotations
