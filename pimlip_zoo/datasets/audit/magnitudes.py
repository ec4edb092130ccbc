"""Are labels of a possible size? For sets in which no two structures are near enough to compare.

Three things say so without knowing the method. How stiff a bond to hydrogen is: 10 to 60 eV/Å² (1.5 to 9 mdyn/Å),
whatever it is bonded to and however hot the sample is; the slope of the force over the length of the bond shows it.
How large forces are where no atoms are too close. And a quick model: a sum over pairs of atoms is fitted to the forces
alone, and what it says of the energies is compared with them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from pimlip_zoo.datasets.audit.factors import ENERGY_FACTORS, FORCE_FACTORS, looks_like
from pimlip_zoo.datasets.audit.finding import Finding
from pimlip_zoo.datasets.audit.survey import Survey
from pimlip_zoo.datasets.frame import Frame
from pimlip_zoo.datasets.neighbour_list import neighbour_distances
from pimlip_zoo.errors import plain_number

_ATOMS = 4_000
"""Atoms of the sample that are looked at."""
_STIFFNESS = 33.0
"""eV/Å², of a typical bond to hydrogen."""
_FLOPPIEST, _STIFFEST = 4.0, 160.0
"""eV/Å²; no bond to hydrogen is outside."""
_BOND = 1.25
"""Times the sum of covalent radii: what is nearer is bonded."""
_MIN_BONDS = 30
_LARGE_FORCE, _ABSURD_FORCE = 8.0, 20.0
"""eV/Å, root mean square by component in half of the structures."""
_SOUND = 0.7
"""Times the sum of covalent radii: closer atoms have any force."""
_REACH, _SPACING = 5.0, 0.3
_RIDGE = 1e-6
_MIN_COMPARED = 12
_CORRELATED = 0.6
_APART = 5.0
_EXACT, _EQUAL = 0.95, 1.3
"""Correlation and factor of a quick model that is as good as right."""
_OPPOSITE = 0.4

_UNITS = {
    **{f"forces in {unit}": size for unit, size in FORCE_FACTORS.items()},
    **{f"energies in {unit}": 1 / size for unit, size in ENERGY_FACTORS.items()},
}
_NAME_UNITS = "name the units: ?energy=...&length=...&forces=..."


def check_magnitudes(survey: Survey, *, compared: bool) -> Iterator[Finding]:
    """Forces of an impossible size, and forces and energies that cannot be in one unit.

    Args:
        survey: of the set.
        compared: whether pairs of near structures have told already how forces and energies belong together.
    """
    frames = _some(survey)
    stiffness = stiffness_of_hydrogen(frames)
    found = list(_hydrogen(survey, stiffness))
    if not found and not compared:
        found = list(_agreement(survey, frames))
    if not any(finding.severity == "refused" for finding in found):
        found += _sizes(survey)
        found += _stress(survey, frames)
    yield from found


def _stress(survey: Survey, frames: Sequence[Frame]) -> Iterator[Finding]:
    correlation = stress_agreement(frames)
    if correlation is None or correlation > -_OPPOSITE:
        return
    text = "stress has the wrong sign: structures are strained the other way by a quick model of the forces"
    values = {"correlation": correlation}
    hint = "stress is +dE/dε / V here: turn it, or name ?virial_key=... where it is a virial"
    yield Finding("stress-sign", "refused", text, survey.name, len(survey), hint=hint, values=values)


def _some(survey: Survey) -> list[Frame]:
    """Frames with forces, spread over the sample, of at most so many atoms."""
    usable = [
        frame
        for frame in survey.sample.values()
        if frame.forces is not None and len(frame.numbers) > 1 and np.isfinite(frame.forces).all()
    ]
    atoms = sum(len(frame.numbers) for frame in usable)
    if atoms <= _ATOMS:
        return usable
    count = max(int(len(usable) * _ATOMS / atoms), min(len(usable), 2 * _MIN_COMPARED))
    return [usable[i * len(usable) // count] for i in range(count)]


# ---- bonds to hydrogen


def stiffness_of_hydrogen(frames: Sequence[Frame]) -> float | None:
    """How much the force on bonded hydrogen rises with the length of its bond, eV/Å²; None where it cannot be told.

    Bonds to one element share a slope; the lengths at rest may differ between structures.

    Args:
        frames: with forces.
    """
    from ase.data import covalent_radii

    rows: list[NDArray[np.float64]] = []
    for frame in frames:
        light = frame.numbers == 1
        if not light.any() or light.all() or frame.forces is None:
            continue
        (centre, other), vectors, distance = neighbour_distances(frame, 2.0)
        kept = light[centre] & ~light[other]
        kept &= distance < _BOND * (covalent_radii[1] + covalent_radii[frame.numbers[other]])
        single = np.bincount(centre[kept], minlength=len(light)) == 1
        kept &= single[centre]
        if kept.any():
            along = -np.einsum("ij,ij->i", frame.forces[centre[kept]], vectors[kept]) / distance[kept]
            rows.append(np.stack([frame.numbers[other[kept]].astype(float), distance[kept], along], axis=1))
    if not rows:
        return None
    table = np.concatenate(rows)
    slopes, weights = [], []
    for element in np.unique(table[:, 0]):
        length, force = table[table[:, 0] == element, 1:].T
        length, force = length - np.median(length), force - np.median(force)
        near = np.abs(length) < 0.15
        if np.count_nonzero(near) < _MIN_BONDS or np.std(length[near]) < 1e-3:
            continue
        length, force = length[near] - length[near].mean(), force[near] - force[near].mean()
        scale = float(np.sqrt(np.mean(length**2) * np.mean(force**2)))
        if scale == 0.0 or abs(float(np.mean(length * force))) < 0.5 * scale:
            continue
        slopes.append(-float(np.sum(length * force) / np.sum(length**2)))
        weights.append(len(length))
    return float(np.average(slopes, weights=weights)) if slopes else None


def _hydrogen(survey: Survey, stiffness: float | None) -> Iterator[Finding]:
    if stiffness is None or _FLOPPIEST < stiffness < _STIFFEST:
        return
    if -_STIFFEST < stiffness < -_FLOPPIEST:
        yield Finding(
            "force-sign",
            "refused",
            "forces have the wrong sign: they push hydrogen out of bonds that are stretched",
            survey.name,
            count=len(survey),
            hint="gradients? name them with ?gradient_key=...",
            values={"stiffness": stiffness},
        )
        return
    # The energies need not be wrong: what is said is of the forces alone.
    names = looks_like(_STIFFNESS / stiffness, FORCE_FACTORS, within=2.0)
    like = f": they look like {' or '.join(names[:2])}" if names else ""
    yield Finding(
        "force-unit",
        "refused",
        f"bonds to hydrogen have a stiffness of {plain_number(abs(stiffness))} eV/Å² by the forces, where 10 to 60 "
        "is "
        f"possible{like}",
        survey.name,
        count=len(survey),
        hint=_NAME_UNITS,
        values={"stiffness": stiffness},
    )


# ---- sizes


def _sizes(survey: Survey) -> Iterator[Finding]:
    facts = survey.facts
    sound = (facts["force_atoms"] > 0) & (facts["natoms"] > 1) & (facts["closest"] > _SOUND)
    if not sound.any():
        return
    size = np.sqrt(facts["force_square"][sound] / (3.0 * facts["force_atoms"][sound]))
    typical = float(np.median(size))
    if typical < _LARGE_FORCE:
        return
    yield Finding(
        "force-magnitude",
        "refused" if typical > _ABSURD_FORCE else "warning",
        f"forces are typically {plain_number(typical)} eV/Å in structures without close atoms; near 300 K they are "
        "0.1 to 2",
        survey.name,
        count=int(sound.sum()),
        hint=f"{_NAME_UNITS}, or leave out what is not physical",
        values={"typical": typical},
    )


# ---- a quick model


class Agreement:
    """How the energies compare with those of a model that has seen the forces only.

    Args:
        ratio: energies change by so many times what the model says.
        correlation: of the two.
        compared: how many structures, less one for each composition.
    """

    def __init__(self, ratio: float, correlation: float, compared: int) -> None:
        self.ratio, self.correlation, self.compared = ratio, correlation, compared


def quick_agreement(frames: Sequence[Frame]) -> Agreement | None:
    """Fit a sum over pairs to the forces, and compare its energies with those of the structures.

    The energies are compared within each composition, where what forces cannot tell, the energy of a bond, drops out.

    Args:
        frames: with forces; those without an energy, or alone in their composition, are not compared.
    """
    groups: dict[bytes, list[Frame]] = {}
    for frame in frames:
        if frame.energy is not None:
            key = np.sort(frame.numbers).tobytes() + frame.pbc.tobytes()
            groups.setdefault(key, []).append(frame)
    several = [group for group in groups.values() if len(group) > 1]
    compared = sum(len(group) - 1 for group in several)
    if compared < _MIN_COMPARED:
        return None
    chosen = [frame for group in several for frame in group]
    energies, forces = _pair_sums(chosen)
    said = energies @ _weights(forces, chosen)
    model, labels, first = [], [], 0
    for group in several:
        rows = slice(first, first + len(group))
        first += len(group)
        size = math.sqrt(len(group[0].numbers))
        known = np.array([float(frame.energy or 0.0) for frame in group])
        model.append((said[rows] - said[rows].mean()) / size)
        labels.append((known - known.mean()) / size)
    x, y = np.concatenate(model), np.concatenate(labels)
    spread = float(np.sqrt(np.sum(x * x) * np.sum(y * y)))
    if spread == 0.0:
        return None
    correlation = float(np.sum(x * y)) / spread
    if correlation == 0.0:
        return None
    # What differs is the model's fault, not that of the labels: the model is regressed on them.
    ratio = float(np.sum(y * y) / np.sum(x * y))
    return Agreement(ratio, correlation, compared)


def stress_agreement(frames: Sequence[Frame]) -> float | None:
    """Correlation of the stress, without its trace, with that of a sum over pairs that is fitted to the forces.

    The trace is left out: in metals and covalent solids much of it is not of pairs. What is left is above 0.45 for
    silicon, germanium, molybdenum, lithium and alloys alike, and as much below zero with the other sign.

    Args:
        frames: with forces; those that are periodic in all directions and have a stress are compared.
    """
    chosen = [frame for frame in frames if frame.stress is not None and frame.pbc.all()]
    if len(chosen) < _MIN_COMPARED:
        return None
    weights = _weights(_pair_sums(chosen)[1], chosen)
    elements = np.unique(np.concatenate([frame.numbers for frame in chosen]))
    said: list[NDArray[np.float64]] = []
    known: list[NDArray[np.float64]] = []
    for frame in chosen:
        pairs, vectors, distance = neighbour_distances(frame, _REACH)
        _, derivative = _radial(distance)
        slopes = np.sum(
            derivative * weights.reshape(-1, len(_CENTRES))[_kinds(frame, pairs, elements)], axis=1
        )
        virial = 0.5 * np.einsum("e,ei,ej->ij", slopes / distance, vectors, vectors)
        for stress, kept in (
            (virial / abs(np.linalg.det(frame.cell)), said),
            (np.asarray(frame.stress), known),
        ):
            kept.append(stress - np.trace(stress) / 3.0 * np.eye(3))
    x, y = np.concatenate(said).reshape(-1), np.concatenate(known).reshape(-1)
    spread = float(np.sqrt(np.sum(x * x) * np.sum(y * y)))
    return float(np.sum(x * y)) / spread if spread > 0 else None


def _weights(forces: NDArray[np.float64], frames: Sequence[Frame]) -> NDArray[np.float64]:
    """Of the radial functions of :func:`_pair_sums`, fitted to the forces of the frames."""
    target = np.concatenate([np.asarray(frame.forces).reshape(-1) for frame in frames])
    scale = np.linalg.norm(forces, axis=0)
    used = scale > 1e-9 * max(scale.max(initial=0.0), 1e-300)
    matrix = forces[:, used] / scale[used]
    normal = matrix.T @ matrix + _RIDGE * len(target) / max(used.sum(), 1) * 1e-2 * np.eye(int(used.sum()))
    weights = np.zeros(len(scale))
    weights[used] = np.linalg.solve(normal, matrix.T @ target) / scale[used]
    return weights


_CENTRES = np.arange(0.6, _REACH, _SPACING)


def _radial(distance: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The radial functions and their derivatives, (E, centres)."""
    offset = (distance[:, None] - _CENTRES) / _SPACING
    rest = (1.0 - (distance / _REACH) ** 2)[:, None]
    bump = np.exp(-0.5 * offset**2)
    slope = -4.0 * (distance / _REACH**2)[:, None] * rest
    return bump * rest**2, bump * (slope - rest**2 * offset / _SPACING)


def _kinds(frame: Frame, pairs: NDArray[np.int64], elements: NDArray[np.int64]) -> NDArray[np.int64]:
    """Which two elements a pair is of, by number."""
    place = np.zeros(119, dtype=np.int64)
    place[elements] = np.arange(len(elements))
    a, b = place[frame.numbers[pairs]]
    high = np.maximum(a, b)
    found: NDArray[np.int64] = high * (high + 1) // 2 + np.minimum(a, b)
    return found


def _pair_sums(frames: Sequence[Frame]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Of each frame the sums of the radial functions over pairs of each two elements, and minus their gradients."""
    elements = np.unique(np.concatenate([frame.numbers for frame in frames]))
    centres = _CENTRES
    columns = len(elements) * (len(elements) + 1) // 2 * len(centres)
    energies = np.zeros((len(frames), columns))
    gradients = []
    for number, frame in enumerate(frames):
        n = len(frame.numbers)
        pairs, vectors, distance = neighbour_distances(frame, _REACH)
        centre, kind = pairs[0], _kinds(frame, pairs, elements)
        value, derivative = _radial(distance)
        force = np.zeros((3 * n, columns))
        for k in np.unique(kind):
            of_kind = kind == k
            where = slice(int(k) * len(centres), (int(k) + 1) * len(centres))
            energies[number, where] = 0.5 * value[of_kind].sum(axis=0)  # each pair is listed twice
            unit = vectors[of_kind] / distance[of_kind, None]
            pushed = (derivative[of_kind, None, :] * unit[:, :, None]).reshape(-1, len(centres))
            rows = (3 * centre[of_kind, None] + np.arange(3)).reshape(-1)
            np.add.at(force[:, where], rows, pushed)
        gradients.append(force)
    return energies, np.concatenate(gradients)


def close_agreement(survey: Survey) -> Finding | None:
    """The word of a quick model, where it is exact and says that forces and energies are of one unit; else None.

    Noble gases, ions and other matter of pair forces are described by it at any distance between structures.

    Args:
        survey: of the set.
    """
    for finding in _agreement(survey, _some(survey)):
        ratio, correlation = finding.values["ratio"], finding.values["correlation"]
        if finding.code == "force-agrees" and correlation > _EXACT and 1 / _EQUAL < ratio < _EQUAL:
            return finding
    return None


def _agreement(survey: Survey, frames: Sequence[Frame]) -> Iterator[Finding]:
    found = quick_agreement(frames)
    if found is None or abs(found.correlation) < _CORRELATED:
        return
    size = abs(found.ratio)
    values = {"ratio": found.ratio, "correlation": found.correlation, "structures": found.compared}
    names = looks_like(size, _UNITS, within=1.6)
    if names and not 1 / _APART < size < _APART:
        sign = ", with the opposite sign" if found.ratio < 0 else ""
        text = (
            f"energies change by about {plain_number(size)} of what a quick model of the forces says: it looks "
            "like "
            f"{' or '.join(names[:3])}{sign}"
        )
        yield Finding(
            "force-unit", "refused", text, survey.name, len(survey), hint=_NAME_UNITS, values=values
        )
    elif found.ratio < 0 and abs(found.correlation) > 0.8:
        text = (
            "forces have the wrong sign: energies rise where a quick model of the forces says that they fall"
        )
        hint = "gradients? name them with ?gradient_key=..."
        yield Finding("force-sign", "refused", text, survey.name, len(survey), hint=hint, values=values)
    elif found.ratio > 0 and not 1 / _APART < size < _APART:
        text = f"energies change by about {plain_number(size)} of what a quick model of the forces says"
        hint = "another unit or method, or energies that include what the forces do not?"
        yield Finding("force-inconsistent", "warning", text, survey.name, hint=hint, values=values)
    elif found.ratio > 0:
        text = (
            f"forces and energies are of one unit: factor {found.ratio:.2f} by a quick model, "
            f"{found.compared + 1} structures"
        )
        yield Finding("force-agrees", "note", text, survey.name, values=values)
