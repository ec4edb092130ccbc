"""Findings about geometry: contacts, atoms without neighbours, thin cells, frames that are there twice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from pimlip_zoo.datasets.audit.alignment import displacement
from pimlip_zoo.datasets.audit.finding import Finding, counted, frames_of
from pimlip_zoo.datasets.audit.survey import Survey
from pimlip_zoo.datasets.open_cell import HINT, MEANS
from pimlip_zoo.errors import plain_number

_TOO_CLOSE = 0.5
_NEAR = 0.02
"""Å root mean square displacement below which two frames are the same for a test's purpose."""
_CANDIDATES = 8


def check_geometry(survey: Survey, cutoff: float) -> Iterator[Finding]:
    """Contacts shorter than half a bond, atoms without neighbours, cells thinner than the cutoff."""
    facts = survey.facts
    close = facts["closest"] < _TOO_CLOSE
    if close.any():
        yield Finding(
            "too-close",
            "warning",
            f"{counted(int(close.sum()), 'structure has', 'structures have')} "
            f"atoms closer than half the sum of their covalent radii, down to "
            f"{float(facts['closest'].min()):.2f} of it",
            survey.name,
            **frames_of(close),
            hint="wrong unit of length, or a structure that fell apart?",
        )
    lonely = facts["lonely"] > 0
    if lonely.any():
        yield Finding(
            "isolated-atoms",
            "warning",
            f"{counted(int(lonely.sum()), 'structure has', 'structures have')} "
            f"atoms without a neighbour within {cutoff:g} Å",
            survey.name,
            **frames_of(lonely),
            hint="such atoms get no force: is the cutoff too small?",
        )
    cut = facts["cut"] > 0
    if cut.any():
        yield Finding(
            "open-cells",
            "warning",
            f"{counted(int(cut.sum()), 'structure has', 'structures have')} {MEANS}",
            survey.name,
            **frames_of(cut),
            hint=HINT,
        )
    thin = facts["thinnest"] < cutoff
    if thin.any():
        yield Finding(
            "thin-cells",
            "note",
            f"{counted(int(thin.sum()), 'cell is', 'cells are')} thinner than the cutoff of {cutoff:g} Å, down to "
            f"{float(facts['thinnest'].min()):.2f} Å: several images are neighbours, which is handled",
            survey.name,
            **frames_of(thin),
        )


def check_duplicates(survey: Survey) -> Iterator[Finding]:
    """Frames that are equal to an earlier one, atom by atom."""
    facts = survey.facts
    _, first, inverse = np.unique(facts["digest"], return_index=True, return_inverse=True)
    original = first[inverse.reshape(-1)]
    again = np.flatnonzero(original != np.arange(len(facts)))
    again = again[facts["natoms"][again] > 1]
    if not len(again):
        return
    yield Finding(
        "duplicates",
        "warning",
        f"{counted(len(again), 'structure is', 'structures are')} equal to an earlier one",
        survey.name,
        **frames_of(again),
        values={"pairs": [[int(original[i]), int(i)] for i in again[:20]]},
    )
    difference = np.abs(facts["energy"][again] - facts["energy"][original[again]])
    differ = again[difference > 1e-3 * facts["natoms"][again]]
    if len(differ):
        yield Finding(
            "contradictory-duplicates",
            "warning",
            f"{len(differ)} of them have another energy, by up to {plain_number(float(np.nanmax(difference)), 4)} eV",
            survey.name,
            **frames_of(differ),
            hint="same geometry, two labels: several methods or charges in one set?",
        )


def check_leakage(surveys: Sequence[Survey]) -> Iterator[Finding]:
    """Frames of one split that are also in another: equal, or the same but for a small displacement."""
    for k, later in enumerate(surveys):
        for earlier in surveys[:k]:
            theirs, mine = earlier.all_digests(), later.all_digests()
            equal = np.isin(mine, theirs) & (mine > 0)
            if equal.any():
                yield Finding(
                    "leakage",
                    "refused",
                    f"{int(equal.sum())} of {len(mine)} structures are also in {earlier.name}",
                    later.name,
                    **frames_of(equal),
                    hint="leave them out of one of the two: errors on them say nothing",
                )
            near = _near(earlier, later, np.flatnonzero(~np.isin(later.facts["digest"], theirs)))
            if near:
                yield later.numbered(
                    Finding(
                        "near-leakage",
                        "warning",
                        f"{len(near)} of {len(later)} structures are within {_NEAR} Å of one in {earlier.name}",
                        later.name,
                        **frames_of([pair[1] for pair in near]),
                        hint="neighbouring frames of a trajectory? split by blocks of time",
                        values={"pairs": [list(pair) for pair in near[:20]]},
                    )
                )


def _near(earlier: Survey, later: Survey, left: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Pairs (frame of the earlier set, frame of the later one) that are nearly the same."""
    pairs: list[tuple[int, int]] = []
    mine = _by_formula(later, left)
    for formula, theirs in _by_formula(earlier, np.arange(len(earlier))).items():
        rows = mine.get(formula)
        if rows is not None:
            pairs += _near_in_group(earlier, later, theirs, rows)
    return sorted(pairs, key=lambda pair: pair[1])


def _near_in_group(
    earlier: Survey, later: Survey, theirs: NDArray[np.int64], rows: NDArray[np.int64]
) -> list[tuple[int, int]]:
    """The same among frames of one formula: candidates by fingerprint, decided by displacement."""
    from scipy.spatial import cKDTree  # type: ignore[import-untyped]

    tree = cKDTree(earlier.facts["print"][theirs])
    prints = later.facts["print"][rows]
    # A displacement by d changes a fingerprint by at most a few times d; the factor is generous.
    reach = 4.0 * _NEAR * np.sqrt(np.mean(prints**2, axis=1)) + 1e-6
    distances, found = tree.query(prints, k=min(_CANDIDATES, len(theirs)))
    distances, found = distances.reshape(len(rows), -1), found.reshape(len(rows), -1)
    pairs = []
    for row, index in enumerate(rows):
        for distance, candidate in zip(distances[row], found[row], strict=True):
            if distance > reach[row]:
                break
            other = int(theirs[candidate])
            a, b = earlier.sample.get(other), later.sample.get(int(index))
            same = distance < 1e-5 if a is None or b is None else _displaced(a, b) < _NEAR
            if same:
                pairs.append((other, int(index)))
                break
    return pairs


def _displaced(a: object, b: object) -> float:
    moved = displacement(a, b)  # type: ignore[arg-type]
    return np.inf if moved is None else moved.rms


def _by_formula(survey: Survey, rows: NDArray[np.int64]) -> dict[bytes, NDArray[np.int64]]:
    """Rows by composition and periodicity; frames of one atom are left out."""
    facts = survey.facts[rows]
    groups: dict[bytes, NDArray[np.int64]] = {}
    key = facts["composition"] * 8 + facts["periodic"]
    for value in np.unique(key[facts["natoms"] > 1]):
        name = survey.compositions[value // 8].tobytes() + bytes([value % 8])
        groups[name] = rows[key == value]
    return groups
