"""One pass over the frames of a set: the few numbers of each that the audit works on, and a sample of frames."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pimlip_zoo.datasets.audit.finding import Finding
from pimlip_zoo.datasets.frame import Frame
from pimlip_zoo.datasets.lmdb.index import force_numbers, geometry_digest
from pimlip_zoo.datasets.lmdb.record import label_mask
from pimlip_zoo.datasets.neighbour_list import neighbour_distances
from pimlip_zoo.datasets.open_cell import fills_open_cell
from pimlip_zoo.errors import InputError

_BINS = 12
_SAMPLE = 2000
FACTS = np.dtype(
    [
        ("natoms", "i8"),
        ("composition", "i8"),
        ("order", "u8"),
        ("labels", "u1"),
        ("periodic", "u1"),
        ("energy", "f8"),
        ("force_square", "f8"),
        ("force_atoms", "i8"),
        ("force_max", "f8"),
        ("force_net", "f8"),
        ("stress_max", "f8"),
        ("digest", "u8"),
        ("edges", "i8"),
        ("closest", "f8"),
        ("lonely", "i8"),
        ("thinnest", "f8"),
        ("volume", "f8"),
        ("cut", "u1"),
        ("print", "f4", (2 * _BINS,)),
    ]
)
"""Per frame: sizes; hash of the sequence of elements; labels; force RMS, maximum, net force (eV/Å); largest
stress component (eV/Å³); hash of the geometry; edges; smallest distance over the sum of covalent radii; atoms
without a neighbour; smallest height of the cell (Å); volume (Å³); whether atoms fill
a cell of whose directions some are open; a fingerprint that does not depend on
rotation, translation or the order of atoms."""


@dataclass(frozen=True)
class Survey:
    """What the audit knows of a set."""

    name: str
    facts: NDArray[np.void]
    """(M,) of :data:`FACTS`."""
    compositions: NDArray[np.int64]
    """(C, 119) atoms of each element."""
    sample: dict[int, Frame]
    """Some frames by their index, spread over the set."""
    bad: tuple[InputError, ...]
    """Frames that cannot be used."""
    groups: dict[str, int]
    """How many frames each ``config_type`` or other group has."""
    places: NDArray[np.int64] | None = None
    """(M,) which frames of the set the facts are of; None: all."""
    digests: NDArray[np.uint64] | None = None
    """Hashes of the geometry of all frames of the set, 0 for single atoms; None: those of the facts."""

    def __len__(self) -> int:
        return len(self.facts)

    def numbered(self, finding: Finding) -> Finding:
        """A finding on some of the facts, its frames numbered as in the set."""
        if self.places is None:
            return finding
        return replace(finding, frames=tuple(int(self.places[frame]) for frame in finding.frames))

    @property
    def total(self) -> int:
        """Frames of the set, looked at or not."""
        return len(self.facts) if self.digests is None else len(self.digests)

    def all_digests(self) -> NDArray[np.uint64]:
        """Hashes of the geometry of all frames, 0 for single atoms."""
        if self.digests is not None:
            return self.digests
        return np.where(self.facts["natoms"] > 1, self.facts["digest"], np.uint64(0))


def survey_frames(
    name: str,
    frames: Iterable[Frame],
    *,
    cutoff: float = 5.0,
    bad: Iterable[InputError] = (),
    progress: Callable[[int], None] | None = None,
) -> Survey:
    """Go through the frames once.

    Args:
        name: of the set, for messages.
        frames: the frames; only a sample of them is kept.
        cutoff: Å, of the model that is to be trained.
        bad: what the reading of the frames gathers while they are gone through.
        progress: called with the number of frames so far.

    Raises:
        InputError: for a cutoff that is no length.
    """
    if not 0 < cutoff < np.inf:
        raise InputError(f"{cutoff:g} Å is not possible", key="--cutoff", hint="a length, such as 5")
    rows: list[tuple[object, ...]] = []
    compositions: dict[bytes, int] = {}
    counts: list[NDArray[np.int64]] = []
    groups: dict[str, int] = {}
    sample: dict[int, Frame] = {}
    stride = 1
    for index, frame in enumerate(frames):
        elements = np.bincount(frame.numbers, minlength=119)
        number = compositions.setdefault(elements.tobytes(), len(counts))
        if number == len(counts):
            counts.append(elements)
        rows.append(_facts(frame, number, cutoff))
        group = frame.info.get("config_type", frame.info.get("group", frame.info.get("subset")))
        if group is not None:
            groups[str(group)] = groups.get(str(group), 0) + 1
        if index % stride == 0:
            sample[index] = frame
            if len(sample) > _SAMPLE:
                stride *= 2
                sample = {i: kept for i, kept in sample.items() if i % stride == 0}
        if progress and index % 256 == 0:
            progress(index)
    table = np.array(counts, dtype=np.int64).reshape(-1, 119)
    return Survey(name, np.array(rows, dtype=FACTS), table, sample, tuple(bad), groups)


def survey_sample(name: str, frames: Sequence[Frame], *, cutoff: float = 5.0, atoms: int = 20_000) -> Survey:
    """Look at some of the frames, spread over the set; of all of them only whether two are equal is known.

    Args:
        name: of the set, for messages.
        frames: all of them.
        cutoff: Å, of the model that is to be trained.
        atoms: how many atoms are looked at, about; structures of at least a hundred frames are.
    """
    stored = getattr(frames, "store", None)
    if stored is not None:
        entries = stored.index[frames.indices]  # type: ignore[attr-defined]
        sizes, digests = entries["natoms"].astype(np.int64), entries["digest"].astype(np.uint64)
    else:
        sizes = np.array([len(frame.numbers) for frame in frames], dtype=np.int64)
        digests = np.array([geometry_digest(frame) for frame in frames], dtype=np.uint64)
    digests = np.where(sizes > 1, digests, np.uint64(0))
    share = atoms / max(int(sizes.sum()), 1)
    count = min(len(frames), max(int(share * len(frames)), 100), _SAMPLE)
    places = np.unique(np.linspace(0, max(len(frames) - 1, 0), count).astype(np.int64))
    chosen = frames.read(places.tolist()) if stored is not None else [frames[i] for i in places.tolist()]  # type: ignore[attr-defined]
    survey = survey_frames(name, chosen, cutoff=cutoff)
    whole = len(places) == len(frames)
    return replace(survey, places=None if whole else places, digests=digests)


def _facts(frame: Frame, composition: int, cutoff: float) -> tuple[object, ...]:
    n = len(frame.numbers)
    force_square, force_max, force_atoms = force_numbers(frame)
    force_net = np.nan
    if frame.forces is not None and force_atoms == n:
        force_net = float(np.linalg.norm(frame.forces.sum(axis=0)))
    edges, closest, lonely, fingerprint = _surroundings(frame, cutoff)
    periodic = bool(frame.pbc.any())
    return (
        n,
        composition,
        hash(frame.numbers.tobytes()) & 0xFFFFFFFFFFFFFFFF,
        label_mask(frame),
        int(frame.pbc[0]) | int(frame.pbc[1]) << 1 | int(frame.pbc[2]) << 2,
        np.nan if frame.energy is None else frame.energy,
        force_square,
        force_atoms,
        force_max,
        force_net,
        np.nan if frame.stress is None else float(np.abs(frame.stress).max()),
        geometry_digest(frame),
        edges,
        closest,
        lonely,
        _thinnest(frame) if periodic else np.inf,
        abs(float(np.linalg.det(frame.cell))) if periodic else np.nan,
        fills_open_cell(frame.positions, frame.cell, frame.pbc),
        fingerprint,
    )


def _surroundings(frame: Frame, cutoff: float) -> tuple[int, float, int, NDArray[np.float64]]:
    """Edges, closest contact, atoms without neighbours, fingerprint."""
    from ase.data import covalent_radii

    n = len(frame.numbers)
    (centre, neighbour), _, distance = neighbour_distances(frame, cutoff)
    if not len(centre):
        return 0, np.inf, n if n > 1 else 0, np.zeros(2 * _BINS)
    a, b = frame.numbers[centre], frame.numbers[neighbour]
    closest = float((distance / (covalent_radii[a] + covalent_radii[b])).min())
    lonely = n - int(np.count_nonzero(np.bincount(centre, minlength=n)))
    place = distance * (_BINS / cutoff)
    left = np.minimum(place.astype(np.int64), _BINS - 1)
    part = place - left
    fade = 1.0 - (distance / cutoff) ** 2
    prints = []
    for weight in (fade, fade * np.sqrt(a * b)):
        low = np.bincount(left, weight * (1 - part), minlength=_BINS + 1)
        high = np.bincount(left + 1, weight * part, minlength=_BINS + 1)
        prints.append((low + high)[:_BINS])
    return len(centre), closest, lonely, np.concatenate(prints) / n


def _thinnest(frame: Frame) -> float:
    """The smallest height of the cell along its periodic directions."""
    periodic = np.flatnonzero(frame.pbc)
    vectors = frame.cell[periodic]
    if len(periodic) < 3:
        gram = vectors @ vectors.T
        return float(np.sqrt(1.0 / np.diag(np.linalg.inv(gram))).min())
    return float(1.0 / np.linalg.norm(np.linalg.inv(frame.cell), axis=0).max())
