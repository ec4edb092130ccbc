"""Which structures to label next: acquisitions by name.

One of them is a function of :class:`Candidates`, a number and a random generator that returns the chosen ones in order,
with what each is expected to bring. Another package adds its own with :func:`register_acquisition`, and names the
module in the entry point group ``pimlip_zoo.acquisitions``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pimlip_zoo.datasets.frame import Frame
from pimlip_zoo.errors import InputError
from pimlip_zoo.labelling.features import (
    atom_features,
    force_information,
    gradient_features,
    untrained,
    whitened,
)
from pimlip_zoo.labelling.uncertainty import Posterior
from pimlip_zoo.models.potential import Potential
from pimlip_zoo.registry import Registry, first_line

_TARGETS = 1500
"""Neighbourhoods by which coverage is measured."""
_OUTLIERS = 0.02
"""Share of the structures that may be outliers of a pool; farthest points would be these."""


@dataclass(frozen=True)
class Choice:
    """A chosen structure."""

    index: int
    """Among the candidates."""
    gain: float
    """What it is expected to bring, in the acquisition's own measure."""


@dataclass
class Candidates:
    """What can be chosen from, and what is known.

    Features are computed when an acquisition asks for them.
    """

    frames: Sequence[Frame]
    known: Sequence[Frame] = ()
    """Labelled structures."""
    potential: Potential | None = None
    """Trained on them."""
    posterior: Posterior | None = None
    eyes: Potential | None = None
    """Whose features tell structures apart; None: the trained potential, or random features."""
    difference: NDArray[np.float64] | None = None
    """(M,) eV/Å, root mean square difference of the forces to those of a cheap level."""
    unit: str = field(default="", compare=False)
    """What an acquisition measures gains in; it sets this."""

    def require(self, what: str) -> Potential:
        """The trained potential.

        Raises:
            InputError: when there is none.
        """
        if self.potential is None:
            raise InputError(f"{what} needs a trained potential", key="--acquisition", hint="give --run RUN")
        return self.potential

    @cached_property
    def atoms(self) -> tuple[list[NDArray[np.float64]], list[NDArray[np.float64]]]:
        """Whitened features (N, D) of the atoms of candidates and of known structures."""
        everything = [*self.frames, *self.known]
        eyes = self.eyes or self.potential or untrained(everything)
        features = whitened(atom_features(eyes, everything), everything)
        return features[: len(self.frames)], features[len(self.frames) :]

    @cached_property
    def means(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(M, S D) and (K, S D): features averaged over the atoms of each element, times the root of their share."""
        elements = np.unique(np.concatenate([frame.numbers for frame in [*self.frames, *self.known]]))
        mine, theirs = self.atoms
        return _means(self.frames, mine, elements), _means(self.known, theirs, elements)


Function = Callable[[Candidates, int, np.random.Generator], list[Choice]]


class Acquisition(NamedTuple):
    """A way to choose."""

    choose: Function
    needs_run: bool
    ignores: tuple[str, ...] = ()
    """Options that the function does not look at."""
    posterior: bool = False
    """Whether it looks at the posterior of the potential."""

    @property
    def description(self) -> str:
        """First line of the function's docstring."""
        return first_line(self.choose)


ACQUISITIONS: Registry[Acquisition] = Registry(
    "acquisition", "pimlip_zoo.acquisitions", ("pimlip_zoo.labelling.acquisition",)
)


def usual_acquisition(pool: Sequence[Frame], *, trained: bool) -> str:
    """What is taken where none is named, by what was measured (docs/results/labelling.md).

    Args:
        pool: to choose from.
        trained: whether there is a potential.
    """
    if trained:
        return "mixed"
    compositions = {tuple(sorted(frame.numbers.tolist())) for frame in pool}
    one_molecule = len(compositions) == 1 and not any(frame.pbc.any() for frame in pool)
    return "cluster" if one_molecule else "coverage"


def register_acquisition(
    name: str, *, needs_run: bool = False, ignores: Sequence[str] = (), posterior: bool = False
) -> Callable[[Function], Function]:
    """Decorator that makes an acquisition known under a name.

    Args:
        name: what users write after ``--acquisition``.
        needs_run: whether it looks at a trained potential.
        ignores: which of ``--features`` and ``--cheap`` it never looks at: they are refused.
        posterior: whether it looks at the posterior of the potential, which takes a pass over the training data.
    """
    return ACQUISITIONS.registering(
        name, lambda function: Acquisition(function, needs_run, tuple(ignores), posterior)
    )


def check_used(name: str, options: Mapping[str, object]) -> None:
    """Refuse options that an acquisition does not look at.

    Args:
        name: of the acquisition.
        options: by name; None: not given.

    Raises:
        InputError: naming the first.
    """
    ways = ACQUISITIONS.all()
    for option in ways[name].ignores:
        if options.get(option) is not None:
            others = ", ".join(other for other, way in ways.items() if option not in way.ignores)
            raise InputError(
                f"the acquisition {name} does not look at it",
                key=option,
                hint=f"leave it out; it is for {others}",
            )


@register_acquisition("random", ignores=("--features", "--cheap"))
def choose_at_random(candidates: Candidates, count: int, rng: np.random.Generator) -> list[Choice]:
    """Any of them: what the others have to beat."""
    candidates.unit = ""
    return [Choice(int(index), np.nan) for index in rng.permutation(len(candidates.frames))[:count]]


@register_acquisition("farthest", ignores=("--cheap",))
def choose_farthest(candidates: Candidates, count: int, rng: np.random.Generator) -> list[Choice]:  # noqa: ARG001
    """Each farthest from those before, by mean features of its atoms; the most remote 2 % are left aside."""
    candidates.unit = "distance to what was known before, in standard deviations"
    points, known = candidates.means
    allowed = ~_outliers(points, count)
    distance = (
        _to_nearest(points, known) if len(known) else np.linalg.norm(points - points.mean(axis=0), axis=1)
    )
    chosen: list[Choice] = []
    for number in range(count):
        first = number == 0 and not len(known)
        score = np.where(allowed, -distance if first else distance, -np.inf)
        best = int(np.argmax(score))
        chosen.append(Choice(best, float(distance[best])))
        allowed[best] = False
        moved = np.linalg.norm(points - points[best], axis=1)
        distance = moved if first else np.minimum(distance, moved)
        if not allowed.any() and number + 1 < count:
            rest = np.setdiff1d(np.arange(len(points)), [choice.index for choice in chosen])
            allowed[rest] = True
    return chosen


@register_acquisition("coverage", ignores=("--cheap",))
def choose_by_coverage(candidates: Candidates, count: int, rng: np.random.Generator) -> list[Choice]:
    """Those whose atoms' neighbourhoods stand best for all in the pool: dense regions count more, outliers little.

    Greedy maximisation of ``sum_t max_(s chosen) max_(a in s) k(a, t)`` over neighbourhoods t of the pool, which is
    submodular: no set of that size is better by more than 1/(1 - 1/e).
    """
    candidates.unit = "% of the pool's neighbourhoods that it stands for, beyond those before"
    similar, known = _similarities(candidates, rng)
    covered, total, chosen = known, similar.shape[1], list[Choice]()
    left = np.ones(len(similar), dtype=bool)
    for _ in range(count):
        gains = np.maximum(similar - covered, 0.0).sum(axis=1)
        best = int(np.argmax(np.where(left, gains, -np.inf)))
        chosen.append(Choice(best, 100.0 * float(gains[best]) / total))
        covered = np.maximum(covered, similar[best])
        left[best] = False
    return chosen


@register_acquisition("cluster", ignores=("--cheap",))
def choose_by_clusters(candidates: Candidates, count: int, rng: np.random.Generator) -> list[Choice]:  # noqa: ARG001
    """By mean features of its atoms, the remotest of the largest cluster each time (LCMD)."""
    candidates.unit = "distance to what was known before, in standard deviations"
    points, known = candidates.means
    return _largest_cluster(points, known, np.ones(len(points)), count)


@register_acquisition("gradient", needs_run=True, ignores=("--features", "--cheap"))
def choose_by_gradients(candidates: Candidates, count: int, rng: np.random.Generator) -> list[Choice]:  # noqa: ARG001
    """By the kernel of gradients by all weights, from the largest cluster each time (LCMD)."""
    candidates.unit = "distance to what was known before, in the space of gradients"
    potential = candidates.require("gradient")
    everything = gradient_features(potential, [*candidates.frames, *candidates.known])
    size = len(candidates.frames)
    return _largest_cluster(everything[:size], everything[size:], np.ones(size), count)


@register_acquisition("variance", needs_run=True, ignores=("--features", "--cheap"), posterior=True)
def choose_by_variance(candidates: Candidates, count: int, rng: np.random.Generator) -> list[Choice]:  # noqa: ARG001
    """Each lowers the uncertainty of the forces in the whole pool most, knowing those before it."""
    candidates.unit = "lower root mean square uncertainty of the pool's forces, meV/Å"
    potential = candidates.require("variance")
    posterior = candidates.posterior
    if posterior is None:
        raise InputError("variance needs a posterior", key="--acquisition", hint="give --run RUN")
    information = force_information(potential, candidates.frames)
    sizes = np.array([len(frame.numbers) for frame in candidates.frames], dtype=np.float64)
    pool = np.tensordot(sizes, information, axes=1) / sizes.sum()
    root = posterior.root.numpy()
    covariance, calibrated = root @ root.T, posterior.forces
    noise = _noise(covariance, pool)
    chosen: list[Choice] = []
    left = np.ones(len(sizes), dtype=bool)
    for _ in range(count):
        before = float(np.trace(covariance @ pool))
        gains = _variance_gains(covariance, information, sizes, pool, noise)
        best = int(np.argmax(np.where(left, gains, -np.inf)))
        precision = np.linalg.inv(covariance) + sizes[best] * information[best] / noise
        covariance = np.linalg.inv(precision)
        after = float(np.trace(covariance @ pool))
        typical = np.sqrt(np.maximum([before, after], 0.0))
        lower = calibrated(typical, typical)
        chosen.append(Choice(best, 1e3 * float(lower[0] - lower[1])))
        left[best] = False
    return chosen


@register_acquisition("mixed", needs_run=True, ignores=("--cheap",), posterior=True)
def choose_by_both(candidates: Candidates, count: int, rng: np.random.Generator) -> list[Choice]:
    """Half by variance, then half by clusters: uncertain structures, and those that are unlike all before."""
    uncertain = choose_by_variance(candidates, count - count // 2, rng)
    taken = [choice.index for choice in uncertain]
    points, known = candidates.means
    others = np.setdiff1d(np.arange(len(points)), taken)
    before = np.concatenate([known, points[taken]])
    unlike = _largest_cluster(points[others], before, np.ones(len(others)), count // 2)
    candidates.unit += "; –: unlike all before"  # a distance, which is no uncertainty
    return [*uncertain, *(Choice(int(others[choice.index]), np.nan) for choice in unlike)]


@register_acquisition("difference", needs_run=True)
def choose_by_difference(candidates: Candidates, count: int, rng: np.random.Generator) -> list[Choice]:  # noqa: ARG001
    """Where potential and cheap level differ most, from the largest cluster of features each time."""
    candidates.unit = "difference of its forces to the cheap level, eV/Å"
    if candidates.difference is None:
        raise InputError(
            "difference needs forces of a cheap level", key="--acquisition", hint="give --cheap gfn2"
        )
    points, known = candidates.means
    weights = candidates.difference / max(float(np.mean(candidates.difference)), 1e-12)
    chosen = _largest_cluster(points, known, weights, count)
    return [Choice(choice.index, float(candidates.difference[choice.index])) for choice in chosen]


def _variance_gains(
    covariance: NDArray[np.float64],
    information: NDArray[np.float64],
    sizes: NDArray[np.float64],
    pool: NDArray[np.float64],
    noise: float,
) -> NDArray[np.float64]:
    """(M,) how much the pool's mean variance falls: ``tr(C W C G (noise + C G)^-1)``, W the pool's information."""
    outer = covariance @ pool @ covariance
    gains = np.empty(len(sizes))
    identity = np.eye(len(covariance))
    for index, (matrix, size) in enumerate(zip(information, sizes, strict=True)):
        mine = size * matrix
        # (C^-1 + G/s)^-1 = C - C G (s + C G)^-1 C
        gains[index] = float(np.sum((outer @ mine) * np.linalg.inv(noise * identity + covariance @ mine).T))
    return gains


def _noise(covariance: NDArray[np.float64], pool: NDArray[np.float64]) -> float:
    """The variance that labels are taken to have: the pool's own, so that one structure does not explain all."""
    return max(float(np.trace(covariance @ pool)) / 3.0, 1e-300)


def _largest_cluster(
    points: NDArray[np.float64], known: NDArray[np.float64], weights: NDArray[np.float64], count: int
) -> list[Choice]:
    """Each the remotest of the cluster with the largest sum of squared distances (LCMD, see ``gradient_features``).

    Args:
        points: (M, D).
        known: (K, D), centres of clusters from the start.
        weights: (M,), factors of the distances.
        count: how many.
    """
    if len(known):
        square = _squares(points, known)
        cluster, distance = np.argmin(square, axis=1), square.min(axis=1)
    else:
        centre = points.mean(axis=0, keepdims=True)
        first = int(np.argmin(_squares(points, centre)[:, 0]))
        square = _squares(points, points[first : first + 1])[:, 0]
        cluster, distance = np.zeros(len(points), dtype=np.int64), square
    chosen: list[Choice] = [] if len(known) else [Choice(first, float(np.sqrt(distance.mean())))]
    left = np.ones(len(points), dtype=bool)
    for choice in chosen:
        left[choice.index] = False
    centres = max(len(known), 1)
    while len(chosen) < count:
        weighted = np.where(left, distance * weights**2, 0.0)
        sums = np.bincount(cluster, weights=weighted, minlength=centres)
        inside = left & (cluster == int(np.argmax(sums)))
        if not inside.any():
            inside = left
        best = int(np.argmax(np.where(inside, weighted, -1.0)))
        chosen.append(Choice(best, float(np.sqrt(distance[best]))))
        left[best] = False
        square = _squares(points, points[best : best + 1])[:, 0]
        nearer = square < distance
        cluster[nearer], distance = centres, np.minimum(distance, square)
        centres += 1
    return chosen[:count]


def _similarities(
    candidates: Candidates, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(M, T) and (T,): similarity of the most similar atom of each candidate, and of all known ones, to each target."""
    mine, theirs = candidates.atoms
    numbers = np.concatenate([frame.numbers for frame in candidates.frames])
    rows = np.concatenate(mine)
    owner = np.repeat(np.arange(len(mine)), [len(part) for part in mine])
    targets = rng.permutation(len(rows))[:_TARGETS]
    similar = np.zeros((len(mine), len(targets)))
    known = np.zeros(len(targets))
    known_rows = np.concatenate(theirs) if theirs else rows[:0]
    known_numbers = np.concatenate([f.numbers for f in candidates.known]) if theirs else numbers[:0]
    for z in np.unique(numbers[targets]):
        columns = np.flatnonzero(numbers[targets] == z)
        ends = rows[targets[columns]]
        atoms = np.flatnonzero(numbers == z)
        square = _squares(rows[atoms], ends)
        width = max(float(np.median(square)) / 4.0, 1e-12)
        close = np.exp(-square / width)
        block = np.zeros((len(mine), len(columns)))
        np.maximum.at(block, owner[atoms], close)
        similar[:, columns] = block
        labelled = known_rows[known_numbers == z]
        if len(labelled):
            known[columns] = np.exp(-_squares(labelled, ends) / width).max(axis=0)
    return similar, known


def _outliers(points: NDArray[np.float64], count: int) -> NDArray[np.bool_]:
    """(M,) the structures whose fifth neighbour is farthest away; none in a pool that is hardly larger than wanted."""
    allowed = min(int(_OUTLIERS * len(points)), len(points) - count)
    flags = np.zeros(len(points), dtype=bool)
    if allowed < 1 or len(points) < 10:
        return flags
    square = _squares(points, points)
    fifth = np.partition(square, 5, axis=1)[:, 5]
    flags[np.argsort(-fifth)[:allowed]] = True
    return flags


def _means(
    frames: Sequence[Frame], atoms: Sequence[NDArray[np.float64]], elements: NDArray[np.int64]
) -> NDArray[np.float64]:
    if not len(frames):
        return np.zeros((0, 1))
    rows = np.zeros((len(frames), len(elements), atoms[0].shape[1]))
    for place, (frame, features) in enumerate(zip(frames, atoms, strict=True)):
        for column, z in enumerate(elements):
            mine = features[frame.numbers == z]
            if len(mine):
                rows[place, column] = mine.mean(axis=0) * (len(mine) / len(features)) ** 0.5
    return rows.reshape(len(frames), -1)


def _to_nearest(points: NDArray[np.float64], known: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.sqrt(_squares(points, known).min(axis=1))


def _squares(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """(A, B) squared distances."""
    square = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1)[None] - 2.0 * a @ b.T
    return np.maximum(square, 0.0)
