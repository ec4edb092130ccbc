"""Options of weak supervision as earlier versions wrote them, read as they were meant, or refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pimlip_zoo.errors import InputError

OLD_ITERATIONS = 3
"""Of every distribution; the default of those that have it."""
_Left = dict[str, tuple[tuple[Any, ...], str]]
LEFT: _Left = {
    "denoising_stiffness": ((20.0,), "write weak.terms.denoising.options.stiffness"),
    "ensemble": (((), []), "write weak.perturbation.ensemble, with benchmarks/weak/baselines installed"),
}
"""Option -> (what earlier versions wrote where it was not used, what to write now)."""
LEFT_SCHEDULES: _Left = dict.fromkeys(
    ("power", "reference"), ((1.0, None), "a weight that follows the error gained nothing: write constant")
)
"""Likewise, of schedules."""


def without_left(values: Any, left: _Left, place: str) -> Any:
    """The table without what earlier versions wrote for options that have left, where it says nothing."""
    if not isinstance(values, Mapping):
        return values
    for key, (said_nothing, hint) in left.items():
        if key in values and values[key] not in said_nothing:
            raise InputError("this option has left the package", key=f"{place}.{key}", hint=hint)
    return {key: value for key, value in values.items() if key not in left}
