"""What a derivative is asked for, where autograd does not tell the functions that compute it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["geometry_only", "parameters_wanted"]

_state = threading.local()


@contextmanager
def geometry_only() -> Iterator[None]:
    """In this block autograd is asked for derivatives by geometry alone, so kernels skip those by parameters.

    To be put around one call of ``torch.autograd.grad`` whose ``inputs`` are edge vectors or positions.
    """
    before = not parameters_wanted()
    _state.geometry_only = True
    try:
        yield
    finally:
        _state.geometry_only = before


def parameters_wanted() -> bool:
    """Whether gradients of parameters have to be computed."""
    return not getattr(_state, "geometry_only", False)
