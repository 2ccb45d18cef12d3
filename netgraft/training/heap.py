"""Memory that was freed stays with the process, for the next tensor of that size."""

from __future__ import annotations

import ctypes
import sys

TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4  # parameters of mallopt, as glibc numbers them

NEVER, NONE = -1, 0

GROWTH = 64 * 2**20
"""Bytes that the heap grows by at least."""


def keep_freed_memory() -> bool:
    """Stop the C library from giving large tensors' memory back to the system, only to ask for it again.

    glibc maps each large allocation anew and unmaps it when it is freed, so that the kernel fills every page of every
    activation with zeros before it is written: up to three quarters of a forward of large images. It concerns the whole
    process, whose memory never shrinks then, so only programs of their own call it, before they compute.

    Returns:
        Whether there was a glibc to tell.

    Source: mallopt(3).
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    settings = ((MMAP_MAX, NONE), (TRIM_THRESHOLD, NEVER), (TOP_PAD, GROWTH))
    return mallopt is not None and all(mallopt(*setting) for setting in settings)
