"""What a derivative is asked for, where autograd does not tell the functions that compute it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

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


@contextmanager
def geometry_is_leaf(yes: bool) -> Iterator[None]:
    """In this block the geometry that a model sees is made for one derivative and seen by nobody else.

    Once forces are known, nothing asks for derivatives by it again: what trains on forces needs those of parameters.
    """
    before = leaf_geometry()
    _state.leaf = yes
    try:
        yield
    finally:
        _state.leaf = before


def leaf_geometry() -> bool:
    """Whether derivatives by geometry are of use inside ``geometry_only`` alone."""
    return bool(getattr(_state, "leaf", False))
