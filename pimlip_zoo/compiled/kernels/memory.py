"""Lets a process keep the memory that one step frees for the next, which needs as much again."""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # names of glibc's mallopt
_KEPT, _MAPPED = 2**31 - 1, 2**30
_OWN_CHOICE = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES")


@cache
def keep_freed_memory() -> None:
    """Tell glibc to give at most what exceeds 2 GiB back to the system, and to keep arrays below 1 GiB.

    By default it returns what a step has freed, whose pages are then cleared one by one as the next step touches
    them. Does nothing with another C library, or where the environment says how memory is to be allocated.
    """
    if not sys.platform.startswith("linux") or any(name in os.environ for name in _OWN_CHOICE):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or not mallopt(_TRIM_THRESHOLD, _KEPT):
        return
    # Setting one ends the automatic choice of the other; older versions allow 32 MiB at most.
    if not mallopt(_MMAP_THRESHOLD, _MAPPED):
        mallopt(_MMAP_THRESHOLD, 2**25)
