"""Do forces and stress belong to the energies? Sign and unit errors show in pairs of near frames.

Between two frames of the same atoms the energy changes by minus the work of the forces and by the work of the
stress: ``E_b - E_a = -1/2 (F_a + F_b) . dr + 1/2 (V_a s_a + V_b s_b) : e``, exact up to third order in the
displacement. A regression over pairs gives a factor of 1 for each term. A factor of -1 is a sign error, and
factors like 27.2 or 0.529 are units.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pimlip_zoo.datasets.audit.alignment import Displacement, displacement, near_pairs
from pimlip_zoo.datasets.audit.factors import ENERGY_FACTORS, FORCE_FACTORS, STRESS_FACTORS
from pimlip_zoo.datasets.audit.finding import Finding
from pimlip_zoo.datasets.audit.survey import Survey
from pimlip_zoo.datasets.frame import Frame
from pimlip_zoo.errors import plain_number

_PER_GROUP = 1000
_BUDGET = 40_000_000
"""Pairs times atoms that are looked at."""
_MAX_PAIRS = 400
_MIN_PAIRS = 10
TRUSTED = 0.7
"""Share of the change of energy that a regression has to explain."""
_TOLERANCE = 0.08
_DEVIATION = 0.35
_RESAMPLED = 40
_FORCE_UNITS = {
    **{f"forces in {unit}": size for unit, size in FORCE_FACTORS.items()},
    "energies in eV": 1.0,
    **{f"energies in {unit}": 1 / size for unit, size in ENERGY_FACTORS.items()},
    "positions in Bohr": 0.529177,
    "positions in nm": 10.0,
}
"""What the data are, by the factor between the energies' changes and what the forces say."""
_STRESS = {f"stress in {unit}": size for unit, size in STRESS_FACTORS.items()}


def check_consistency(survey: Survey) -> Iterator[Finding]:
    """Sign and unit of forces and stress against the energies."""
    pairs = np.array(_pairs(survey)).reshape(-1, 3)
    still, strained = pairs[pairs[:, 2] == 0.0], pairs[pairs[:, 2] != 0.0]
    forces = stress = None
    if len(still) >= _MIN_PAIRS:
        (forces,) = _fit(still[:, 1:2], still[:, 0])
    if len(strained) >= _MIN_PAIRS and forces is not None and forces.explained > TRUSTED:
        (stress,) = _fit(strained[:, 2:3], strained[:, 0] - forces.factor * strained[:, 1])
    elif len(strained) >= _MIN_PAIRS:
        joint = _fit(strained[:, 1:3], strained[:, 0])
        forces, stress = forces or joint[0], joint[1]
    if forces is None:
        yield Finding(
            "consistency-unknown",
            "note",
            "there are too few near pairs of structures to compare forces with energies",
            survey.name,
        )
    else:
        yield _verdict(survey, "force", "forces", forces, _FORCE_UNITS)
    if stress is not None:
        yield _verdict(survey, "stress", "stress", stress, _STRESS)


@dataclass(frozen=True)
class _Slope:
    """A factor of the regression."""

    factor: float
    error: float
    """Standard error, from resampled pairs."""
    explained: float
    """Share of the change of energy that the regression explains."""
    pairs: int

    @property
    def certain(self) -> bool:
        return self.explained >= TRUSTED

    @property
    def significant(self) -> bool:
        return abs(self.factor) > 4.0 * self.error


def _verdict(survey: Survey, what: str, label: str, slope: _Slope, units: dict[str, float]) -> Finding:
    """What a factor of the regression means."""
    factor, size = slope.factor, abs(slope.factor)
    rest: dict[str, Any] = {"data": survey.name, "values": asdict(slope)}
    near = [name for name, unit in units.items() if abs(np.log(max(size, 1e-12) / unit)) < 0.3]
    sharp = [name for name in near if abs(size / units[name] - 1) < _TOLERANCE]
    far = not (0.2 < size < 5.0 if slope.certain else 0.1 < size < 10.0)
    if slope.significant and ((far and near) or (slope.certain and sharp and abs(size - 1) > _TOLERANCE)):
        near.sort(key=lambda name: abs(np.log(size / units[name])))
        best = abs(np.log(size / units[near[0]])) + (0.05 if slope.certain else 0.2)
        names = " or ".join(name for name in near if abs(np.log(size / units[name])) < best)
        sign = ", with the opposite sign" if factor < 0 else ""
        by = f"energies change by {plain_number(factor, 4)} of what the {label} {_says(label)}"
        text = f"{by}: it looks like {names}{sign}"
        hint = f"name the units: ?energy=...&length=...&{label}=..."
        return Finding(f"{what}-unit", "refused", text, count=len(survey), hint=hint, **rest)
    if slope.significant and factor < 0 and not far:
        verb, they = ("has", "it says") if label == "stress" else ("have", "they say")
        text = f"{label} {verb} the wrong sign: energies change by {factor:.3f} of what {they}"
        hint = (
            "gradients? name them with ?gradient_key=..." if what == "force" else "stress is +dE/dε / V here"
        )
        return Finding(f"{what}-sign", "refused", text, count=len(survey), hint=hint, **rest)
    if slope.significant and abs(factor - 1) < (_DEVIATION if slope.certain else 0.6):
        text = f"{label} and energies belong together: factor {factor:.2f} over {slope.pairs} pairs of structures"
        return Finding(f"{what}-consistent", "note", text, **rest)
    if slope.significant and slope.certain and abs(factor - 1) - 2.0 * slope.error > _DEVIATION:
        text = f"energies change by {plain_number(factor)} of what the {label} {_says(label)}"
        hint = "another method or unit, or energies that include what the forces do not?"
        return Finding(f"{what}-inconsistent", "warning", text, hint=hint, **rest)
    text = f"pairs of structures are too far apart to compare {label} with energies"
    return Finding(
        "consistency-unknown" if what == "force" else "stress-consistency-unknown", "note", text, **rest
    )


def _says(label: str) -> str:
    return "says" if label == "stress" else "say"


def _fit(columns: NDArray[np.float64], rise: NDArray[np.float64]) -> list[_Slope]:
    """Factors of the columns, by least absolute deviations, with resampled errors."""
    factors = _least_absolute(columns, rise)
    total = float(np.abs(rise).sum())
    explained = 1.0 - float(np.abs(rise - columns @ factors).sum()) / total if total else 0.0
    rng = np.random.default_rng(0)
    draws = rng.integers(len(rise), size=(_RESAMPLED, len(rise)))
    errors = np.std([_least_absolute(columns[rows], rise[rows]) for rows in draws], axis=0)
    return [
        _Slope(float(factor), float(error), explained, len(rise))
        for factor, error in zip(factors, errors, strict=True)
    ]


def _least_absolute(columns: NDArray[np.float64], rise: NDArray[np.float64]) -> NDArray[np.float64]:
    """Iterated weights."""
    weights: NDArray[np.float64] = np.ones(len(rise))
    floor = 1e-6 + 1e-3 * float(np.median(np.abs(rise)))
    factors: NDArray[Any] = np.zeros(columns.shape[1])
    for _ in range(20):
        root = np.sqrt(weights)
        factors = np.linalg.lstsq(columns * root[:, None], rise * root, rcond=None)[0]
        weights = 1.0 / np.maximum(np.abs(rise - columns @ factors), floor)
    return factors


def _pairs(survey: Survey) -> list[tuple[float, float, float]]:
    """(change of energy, work of forces, work of stress) of the nearest pairs, eV."""
    groups: dict[bytes, list[Frame]] = {}
    for frame in survey.sample.values():
        if frame.energy is None or frame.forces is None or len(frame.numbers) == 1:
            continue
        if np.isfinite(frame.forces).all():
            groups.setdefault(frame.numbers.tobytes() + frame.pbc.tobytes(), []).append(frame)
    near: dict[bool, list[tuple[float, tuple[float, float, float]]]] = {False: [], True: []}
    budget = _BUDGET
    for group in sorted(groups.values(), key=len, reverse=True):
        size = min(len(group), _PER_GROUP)
        budget -= size**2 * len(group[0].numbers)
        if size < 2 or budget < 0:
            break
        chosen = [group[i * len(group) // size] for i in range(size)]
        for i, j in near_pairs(chosen):
            a, b = chosen[i], chosen[j]
            way = displacement(a, b)
            if way is None or way.rms < 1e-6:
                continue
            strained = bool(way.strain.any())
            if not strained or (a.stress is not None and b.stress is not None):
                # For stress the atoms should move little: how large the strain is matters less.
                far = way.atoms_rms + 0.2 * float(np.linalg.norm(way.strain))
                near[strained].append((far, _energies(a, b, way)))
    # The nearer half: the error of the trapezoidal rule grows with the third power of the displacement.
    return [pair for found in near.values() for _, pair in sorted(found)[: _kept(len(found))]]


def _kept(found: int) -> int:
    return max(_MIN_PAIRS, min(_MAX_PAIRS, found // 2))


def _energies(a: Frame, b: Frame, way: Displacement) -> tuple[float, float, float]:
    assert a.energy is not None
    assert b.energy is not None
    assert a.forces is not None
    assert b.forces is not None
    work = -0.5 * float(np.sum((a.forces + b.forces @ way.rotation) * way.moved))
    strain_work = 0.0
    if a.stress is not None and b.stress is not None and way.strain.any():
        turned = way.rotation.T @ b.stress @ way.rotation
        volumes = (abs(np.linalg.det(a.cell)), abs(np.linalg.det(b.cell)))
        strain_work = 0.5 * float(np.sum((volumes[0] * a.stress + volumes[1] * turned) * way.strain))
    return b.energy - a.energy, work, strain_work
