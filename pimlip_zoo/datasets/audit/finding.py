"""What an audit says: findings, each with how grave it is and which frames it concerns."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

Severity = Literal["refused", "warning", "note"]
_LISTED = 20


@dataclass(frozen=True)
class Finding:
    """One thing that was found."""

    code: str
    """A short name that does not change: ``duplicates``, ``force-sign``."""
    severity: Severity
    """``refused``: training on the data makes no sense; ``warning``: look at it; ``note``: good to know."""
    message: str
    data: str
    """The set."""
    count: int = 0
    """How many frames are concerned."""
    frames: tuple[int, ...] = ()
    """Some of them."""
    hint: str = ""
    values: dict[str, Any] = field(default_factory=dict)
    """Numbers behind the message."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"frames": list(self.frames)}


def frames_of(concerned: Iterable[Any]) -> dict[str, Any]:
    """``count`` and ``frames`` of a finding from indices or a mask."""
    array = np.asarray(concerned)
    if array.dtype == bool:
        array = np.flatnonzero(array)
    return {"count": len(array), "frames": tuple(int(i) for i in array[:_LISTED])}


def counted(concerned: int, one: str, many: str) -> str:
    """The number with what is said of it.

    >>> counted(1, "cell is", "cells are"), counted(2, "cell is", "cells are")
    ('1 cell is', '2 cells are')
    """
    return f"{concerned} {one if concerned == 1 else many}"
