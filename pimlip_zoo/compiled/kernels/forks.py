"""Computing in a process that was forked from one that has computed."""

from __future__ import annotations

import os
from functools import cache

import torch


@cache
def one_thread_after_fork() -> None:
    """From now on, processes that are forked from this one compute on one thread each.

    A fork copies no threads, and GNU's OpenMP waits for those that it had, for ever. Processes that are
    forked work side by side, so that one thread each is what they need; one that is spawned has as many as any.
    """
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))
