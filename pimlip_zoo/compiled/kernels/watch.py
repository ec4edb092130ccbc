"""Lets somebody see which kernels are called, with what: native export writes it down."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class KernelCall:
    """One call of a compiled function, see :meth:`KernelLibrary.call`."""

    library: object
    kernel: Hashable
    rows: int
    work: int | None
    lists: Sequence[Tensor | None]
    operands: Sequence[Tensor | None]
    results: Sequence[Tensor | None]


class Watcher(Protocol):
    """Whoever wants to know."""

    def called(self, call: KernelCall) -> None:
        """A kernel was called."""
        ...

    def made(self, lists: object, source: Tensor | None, rows: int) -> None:
        """Lists for kernels were made, of what and for how many rows."""
        ...


_state = threading.local()


def watchers() -> Sequence[Watcher]:
    """Those who are told at present of what this thread does."""
    active: Sequence[Watcher] = getattr(_state, "active", ())
    return active


@contextmanager
def watched_by(watcher: Watcher) -> Iterator[None]:
    """Tell this one inside a ``with`` block, of what this thread does and no other."""
    before = watchers()
    _state.active = (*before, watcher)
    try:
        yield
    finally:
        _state.active = before
