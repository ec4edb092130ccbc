"""Structures that are not worth a label: duplicates, broken molecules, atoms on top of each other, absurd forces."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pimlip_zoo.datasets.frame import Frame
from pimlip_zoo.datasets.lmdb.index import geometry_digest
from pimlip_zoo.datasets.neighbour_list import neighbour_distances

_CLOSE = 0.5
_BOND = 1.3
"""In units of the sum of covalent radii."""
_USUAL = 0.5
"""Share of the molecules of a composition whose number of fragments is the usual one."""


@dataclass(frozen=True)
class LeftOut:
    """A structure that is not chosen from, and why."""

    index: int
    reason: str


def screen(
    frames: Sequence[Frame],
    known: Sequence[Frame] = (),
    forces: Sequence[NDArray[np.float64] | None] | None = None,
    *,
    max_force: float = 50.0,
) -> tuple[list[int], list[LeftOut]]:
    """The usable structures, and the others with reasons.

    A molecule is broken when it has more fragments (atoms joined below 1.3 times the sum of their covalent radii) than
    most of its composition have.

    Args:
        frames: the pool.
        known: structures that are labelled.
        forces: (N, 3) eV/Å of each, such as a potential's; None: those that the frames have.
        max_force: eV/Å; where an atom feels more, the structure is left out.
    """
    seen = {geometry_digest(frame): "it is labelled already" for frame in known}
    fragments = [_fragments(frame) for frame in frames]
    usual = _usual(frames, fragments)
    usable, left = list[int](), list[LeftOut]()
    for index, frame in enumerate(frames):
        digest = geometry_digest(frame)
        felt = frame.forces if forces is None else forces[index]
        reason = seen.get(digest)
        if reason is None:
            reason = _fault(frame, fragments[index], usual, felt, max_force)
        seen.setdefault(digest, f"equal to structure {index}")
        if reason is None:
            usable.append(index)
        else:
            left.append(LeftOut(index, reason))
    return usable, left


def _fault(
    frame: Frame,
    fragments: int | None,
    usual: dict[bytes, int],
    forces: NDArray[np.float64] | None,
    max_force: float,
) -> str | None:
    from ase.data import covalent_radii

    if len(frame.numbers) == 0:
        return "it has no atoms"
    if len(frame.numbers) > 1:
        largest = 2 * _CLOSE * float(covalent_radii[frame.numbers].max())
        edges, _, lengths = neighbour_distances(frame, largest)
        ratio = lengths / covalent_radii[frame.numbers[edges]].sum(axis=0)
        if ratio.min(initial=1.0) < _CLOSE:
            return f"two atoms are at {ratio.min():.2f} of the sum of their covalent radii"
    if forces is not None:
        if not np.isfinite(forces).all():
            return "its forces are not finite"
        strongest = float(np.linalg.norm(forces, axis=1).max(initial=0.0))
        if strongest > max_force:
            return f"a force of {strongest:.3g} eV/Å"
    common = usual.get(_composition(frame))
    if fragments is not None and common is not None and fragments > common:
        return f"broken: {fragments} fragments, usual are {common}"
    return None


def _usual(frames: Sequence[Frame], fragments: Sequence[int | None]) -> dict[bytes, int]:
    counts: dict[bytes, Counter[int]] = {}
    for frame, number in zip(frames, fragments, strict=True):
        if number is not None:
            counts.setdefault(_composition(frame), Counter())[number] += 1
    usual = {}
    for key, counter in counts.items():
        number, count = counter.most_common(1)[0]
        if count > _USUAL * counter.total() or counter.total() == 1:
            usual[key] = number
    return usual


def _composition(frame: Frame) -> bytes:
    return np.sort(frame.numbers).astype(np.int64).tobytes()


def _fragments(frame: Frame) -> int | None:
    """Connected parts of a molecule; None for what is periodic."""
    if frame.pbc.any() or len(frame.numbers) == 0:
        return None
    from ase.data import covalent_radii
    from scipy.sparse import coo_matrix  # type: ignore[import-untyped]
    from scipy.sparse.csgraph import connected_components  # type: ignore[import-untyped]

    count = len(frame.numbers)
    reach = 2 * _BOND * float(covalent_radii[frame.numbers].max())
    edges, _, distances = neighbour_distances(frame, reach)
    bonded = distances < _BOND * covalent_radii[frame.numbers[edges]].sum(axis=0)
    ends = edges[:, bonded]
    graph = coo_matrix((np.ones(ends.shape[1]), (ends[0], ends[1])), shape=(count, count))
    return int(connected_components(graph, directed=False)[0])
