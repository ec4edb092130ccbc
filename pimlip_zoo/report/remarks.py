"""What errors on a data set say beyond their size: labels in another unit, with another sign or another zero."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from pimlip_zoo.datasets.audit.factors import ENERGY_FACTORS, FORCE_FACTORS, STRESS_FACTORS, looks_like
from pimlip_zoo.errors import plain_number

_APART = 5.0
_SHIFT = 5.0
"""eV per atom that energies may be off before their zero is doubted."""
_FEW = 6


def remarks_on(pairs: Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]]) -> list[str]:
    """Sentences on labels that are orders of magnitude away from what a potential says.

    Args:
        pairs: (labels, predictions) of energy_per_atom, forces and stress, flat, in eV and Å.
    """
    said = []
    for name, units, hint in (
        ("forces", FORCE_FACTORS, "?energy=...&length=...&forces=..."),
        ("stress", STRESS_FACTORS, "?stress=..."),
    ):
        if name in pairs:
            said += _size(name, *pairs[name], units, hint)
    if "energy_per_atom" in pairs:
        said += _zero(*pairs["energy_per_atom"])
    return said


def _size(
    name: str,
    labels: NDArray[np.float64],
    predicted: NDArray[np.float64],
    units: Mapping[str, float],
    hint: str,
) -> list[str]:
    labelled, told = float(np.sqrt(np.mean(labels**2))), float(np.sqrt(np.mean(predicted**2)))
    if len(labels) < _FEW or min(labelled, told) == 0.0 or not math.isfinite(labelled * told):
        return []
    along = float(np.mean(labels * predicted)) / (labelled * told)
    ratio = labelled / told
    if not 1 / _APART < ratio < _APART:
        names = looks_like(1.0 / ratio, units, within=1.6)
        like = f", as if they were in {' or '.join(names[:2])}" if names and abs(along) > 0.5 else ""
        text = f"the labelled {name} are typically {plain_number(ratio)} times what the potential says{like}"
        return [f"{text} (name the units: {hint})"]
    if along < -0.5:
        return [f"the labelled {name} point against what the potential says: their sign is another one"]
    return []


def _zero(labels: NDArray[np.float64], predicted: NDArray[np.float64]) -> list[str]:
    shift = float(np.median(labels - predicted))
    if abs(shift) < _SHIFT or not math.isfinite(shift):
        return []
    middle = float(np.median(predicted))
    ratio = float(np.median(labels)) / middle if middle else 0.0
    names = looks_like(1.0 / ratio, ENERGY_FACTORS, within=1.05) if ratio > 0 else []
    like = f", as if they were in {names[0]}" if names else ""
    text = f"the labelled energies are typically {shift:+.4g} eV/atom away from what the potential says{like}"
    return [f"{text} (another unit, another zero of energy, or another method?)"]
