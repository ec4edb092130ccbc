"""Structures around a training set, with energies, forces and stress from a cheap calculator."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import Field, PositiveFloat, PositiveInt

from pimlip_zoo.datasets.electrons import stated
from pimlip_zoo.datasets.frame import Frame
from pimlip_zoo.datasets.frames import electrons_bytes, geometry_bytes
from pimlip_zoo.errors import InputError
from pimlip_zoo.processes import Reply, cores, serve
from pimlip_zoo.section import Section
from pimlip_zoo.weak_labels.calculators import CheapCalculator, find_cheap_calculator, work_for
from pimlip_zoo.weak_labels.pool_work import (
    Part,
    answer_parts,
    do_parts,
    forget,
    made_anew,
    told_duration,
)
from pimlip_zoo.weak_labels.sampling import PoolSampling

log = logging.getLogger("pimlip_zoo")

Progress = Callable[[int, int], None]
"""Called with how much is done, and of how much."""


class PoolMethod(NamedTuple):
    """Where the structures of a pool come from."""

    displaced: float
    """Share of what is sampled by displacing atoms; the rest comes along dynamics."""
    unread: tuple[str, ...] = ()
    """Options of the pool that change nothing."""
    given: bool = False
    """Whether the unlabelled structures are taken as they are first; what they lack is sampled around them."""

    def moving(self, structures: int) -> int:
        """How many of so many sampled ones come along dynamics."""
        return structures - int(self.displaced * structures)


_DYNAMICS = ("temperatures", "timestep", "stride", "friction")
METHODS = {
    "md": PoolMethod(0.0, unread=("amplitudes",)),
    "displaced": PoolMethod(1.0, unread=_DYNAMICS),
    "both": PoolMethod(0.5),
    "given": PoolMethod(1.0, unread=_DYNAMICS, given=True),
}
"""By what ``weak.labels.pool.method`` says."""


class PoolOptions(Section):
    """How structures around the training set are sampled."""

    structures: PositiveInt | None = None
    """How many are sampled and labelled; None: 1,500, 100 for each kind of molecule where that is more, fewer where
    molecules are large (40,000 atoms in all, but 200 structures)."""
    method: Literal["md", "displaced", "both", "given"] = "md"
    """given: the structures of ``weak.unlabelled`` as they are, and displaced ones where these are too few."""
    temperatures: tuple[PositiveFloat, ...] = (300.0, 600.0, 900.0)
    """K, of the Langevin dynamics with the cheap calculator; structures are shared equally."""
    timestep: PositiveFloat = 0.5
    """fs."""
    stride: PositiveInt = 20
    """Steps between two structures that are kept."""
    friction: PositiveFloat = 0.02
    """1/fs."""
    amplitudes: tuple[PositiveFloat, ...] = (0.03, 0.08)
    """Å by component, of normal displacements."""
    max_force: PositiveFloat = 50.0
    """eV/Å: structures with a larger force on an atom are thrown away."""
    seed: int = Field(default=0, ge=0)
    """Of the sampling."""

    def unread(self) -> dict[str, str]:
        """Options that change nothing beside the others, and why."""
        return dict.fromkeys(self.sampled.unread, f"weak.labels.pool.method is {self.method}")

    @property
    def sampled(self) -> PoolMethod:
        """What the method means."""
        return METHODS[self.method]

    def for_structures(self, starts: Sequence[Frame]) -> PoolOptions:
        """With a number of structures that follows those where sampling starts, unless it was given."""
        if self.structures is not None or not starts:
            return self
        kinds = len({np.sort(frame.numbers).tobytes() for frame in starts})
        atoms = float(np.mean([len(frame.numbers) for frame in starts]))
        wanted = min(max(_POOL, 100 * kinds), 4 * _POOL)
        return self.model_copy(
            update={"structures": min(wanted, max(_LEAST_POOL, round(_POOL_ATOMS / atoms)))}
        )


_POOL, _LEAST_POOL, _POOL_ATOMS = 1_500, 200, 40_000
_APART = 1000
"""Of the numbers of trajectories at two temperatures, more where each has more structures. In pools of more than so
many structures at a temperature, as earlier versions made them, some trajectories were those of another one."""
_AT_ONCE = 50
"""Structures that are kept together when they are labelled."""
_WORTH_SHARING = 30.0
"""Seconds of work for which other processes are started."""
_MEASURED, _MEASUREMENTS = 2.0, 100
"""Seconds, and evaluations of a structure, that an estimate may take; a twentieth of the work where that is less."""
_LONG, _FEWER = 3600.0, " (fewer structures: --set weak.labels.pool.structures=N)"
"""Seconds from which it is said how the work becomes less."""
_OTHERS = 0.5
"""Load above the number of cores from which it is said that they are shared."""


def label_frames(frames: Sequence[Frame], level: CheapCalculator) -> list[Frame]:
    """The same structures with the calculator's energies and forces, and stress where they are crystals and it has it.

    Raises:
        InputError: when the calculator fails, or knows no charges and a structure has one; naming the structure.
    """
    _check_electrons(frames, level)
    return PoolSampling(frames, level, PoolOptions()).labels(range(len(frames)), lambda _: None)


def sample_pool(
    frames: Sequence[Frame],
    level: CheapCalculator,
    options: PoolOptions,
    progress: Progress | None = None,
    unlabelled: Sequence[Frame] = (),
) -> list[Frame]:
    """Sample structures around the given ones and label them.

    The dynamics start from random ones of the given structures; every temperature is shared by several trajectories.
    A trajectory that leaves physics (forces above the limit, a failing calculator) is ended and a new one begun.

    Args:
        frames: where sampling starts.
        level: the cheap calculator, which gives forces and labels.
        options: how.
        progress: is told how far it is.
        unlabelled: where sampling starts, too; with the method ``given`` they alone matter.

    Raises:
        InputError: when too few structures stay within the limit of force.
    """
    starts = _starts(frames, unlabelled, options)
    options = options.for_structures(starts)
    return _Work(starts, level, options, progress).sample(unlabelled)


def labelled_pool(
    frames: Sequence[Frame],
    level: CheapCalculator,
    options: PoolOptions,
    folder: Path | None = None,
    progress: Progress | None = None,
    unlabelled: Sequence[Frame] = (),
) -> list[Frame]:
    """A pool from the cache, or sampled, labelled and put there.

    It is found by a hash of everything that it depends on: the structures, the calculator with its version, the
    options.

    Args:
        frames: where sampling starts.
        level: the cheap calculator.
        options: how structures are sampled.
        folder: of the cache; None: :func:`cache_folder`.
        progress: is told how far the sampling is.
        unlabelled: see :func:`sample_pool`.
    """
    starts = _starts(frames, unlabelled, options)
    options = options.for_structures(starts)
    many = (options.structures or 0) > _APART * len(options.temperatures)
    key = _key(starts, level, ["further parts" if many else "parts", options.model_dump(mode="json")])

    def make(parts: Path) -> list[Frame]:
        return _Work(starts, level, options, progress, parts).sample(unlabelled)

    return _cached(folder, level, key, make)


def cached_labels(
    frames: Sequence[Frame],
    level: CheapCalculator,
    folder: Path | None = None,
    progress: Progress | None = None,
) -> list[Frame]:
    """:func:`label_frames`, from the cache where these structures have been labelled before."""
    key = _key(frames, level, "single points")

    def make(parts: Path) -> list[Frame]:
        return _Work(frames, level, PoolOptions(structures=len(frames)), progress, parts).label()

    return _cached(folder, level, key, make)


def corrections(frames: Sequence[Frame], calculator: str, *, trust: bool = False) -> list[Frame]:
    """The structures with their labels less those of a cheap calculator: what a potential learns that corrects it.

    Args:
        frames: with labels.
        calculator: its name.
        trust: call it when it is the name of a function.
    """
    from pimlip_zoo.weak_labels.offsets import (
        subtract_labels,
    )  # needs torch, which those who ask for the cache do not

    cheap = cached_labels(frames, find_cheap_calculator(calculator, trust=trust))
    return subtract_labels(frames, cheap)


def _cached(
    folder: Path | None, level: CheapCalculator, key: str, make: Callable[[Path], list[Frame]]
) -> list[Frame]:
    """The frames of a key; ``make`` is given the folder where it may keep parts of them meanwhile."""
    from pimlip_zoo.datasets.lmdb import FrameStore, write_store

    path = (folder or cache_folder()) / f"{_safe(level.name)}-{key[:20]}.lmdb"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        parts = path.with_suffix(".parts")
        try:
            made = make(parts)
        except KeyboardInterrupt:
            log.info("the labels so far are kept in %s: the same command goes on there", parts)
            raise
        write_store(path, made, meta={"supervisor": level.name, "supervisor_version": level.version})
        forget(parts)
    log.info("labels of %s: %s", level.name, path)
    with made_anew(path):
        return list(FrameStore(path))


def cache_folder() -> Path:
    """``$PIMLIP_ZOO_CACHE``, or ``pimlip-zoo`` in the user's cache."""
    given = os.environ.get("PIMLIP_ZOO_CACHE")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pimlip-zoo"


def _safe(name: str) -> str:
    """A name that can be that of a file."""
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in name)[-40:]


def _check_electrons(frames: Sequence[Frame], level: CheapCalculator) -> None:
    """Refuse ions where the calculator would label them as neutral without a word; say where it may."""
    found = next(((index, electrons) for index, f in enumerate(frames) if (electrons := stated(f))), None)
    if found is None:
        return
    index, electrons = found
    said = ", ".join(f"{key} {value}" for key, value in electrons.items())
    if not level.charged:
        raise InputError(
            f"{level.name} knows nothing of {said}",
            frame=index,
            key="weak.labels.calculator",
            hint="use one that does, such as gfn2, or leave these structures out",
        )
    if level.known:
        return
    sees = getattr(level.make(), "sees_electrons", None)
    if sees is None:
        log.warning(
            "a structure states %s: whether %s takes it into account is its own matter (it finds it in atoms.info, and "
            "as initial charges and moments)",
            *(said, level.name),
        )
    elif not sees:
        log.warning(
            "a structure states %s: the model of %s does not see it, and labels the geometry alone",
            *(said, level.name),
        )


def _starts(frames: Sequence[Frame], unlabelled: Sequence[Frame], options: PoolOptions) -> Sequence[Frame]:
    """Where sampling starts. Given structures are the same whichever of the others are labelled."""
    return unlabelled if options.sampled.given else [*frames, *unlabelled]


class _Work:
    """Labelling in parts; see :mod:`pimlip_zoo.weak_labels.pool_work`.

    Args:
        starts: where sampling starts, or what is labelled.
        level: the cheap calculator.
        options: with a number of structures.
        progress: is told how far it is.
        parts: folder for finished parts; None: they are not kept.
    """

    def __init__(
        self,
        starts: Sequence[Frame],
        level: CheapCalculator,
        options: PoolOptions,
        progress: Progress | None,
        parts: Path | None = None,
    ) -> None:
        self.starts, self.level, self.options = starts, level, options
        self.progress, self.parts = progress, parts
        self.sampling = PoolSampling(starts, level, options)
        self._done, self._processes = 0, 1

    def label(self) -> list[Frame]:
        """The structures as they are."""
        _check_electrons(self.starts, self.level)
        self._estimate(len(self.starts), 1.0)
        chunks = range(0, len(self.starts), _AT_ONCE)
        return self._do([self._range("label", first, len(self.starts)) for first in chunks])

    def sample(self, unlabelled: Sequence[Frame]) -> list[Frame]:
        """The structures of a pool."""
        if not self.starts:
            raise InputError("there is no structure to start from", key="weak.labels.pool")
        _check_electrons(self.starts, self.level)
        total = self.options.structures or 0
        method = self.options.sampled
        self._estimate(total, 1.0 + method.moving(total) / max(total, 1) * (self.options.stride - 1))
        pool: list[Frame] = []
        if method.given:
            order = np.random.default_rng(self.options.seed).permutation(len(unlabelled)).tolist()
            first = 0
            while first < len(order) and len(pool) < total:  # some fail: then further ones are asked for
                last = min(first + total - len(pool), len(order))
                chunks = range(first, last, _AT_ONCE)
                pool += self._do([self._range("given", k, last, order) for k in chunks])
                first = last
        left = total - len(pool)
        moving = method.moving(left)
        parts: list[Part] = [
            self._range("displaced", first, left - moving) for first in range(0, left - moving, _AT_ONCE)
        ]
        parts += _along(self.options.temperatures, moving)
        return pool + self._do(parts)

    def _range(self, kind: str, first: int, last: int, order: Sequence[int] | None = None) -> Part:
        """A part of structures that are taken one after the other."""
        places = range(first, min(first + _AT_ONCE, last))
        indices = list(places) if order is None else [order[place] for place in places]
        return {"kind": kind, "number": first, "count": len(places), "indices": indices}

    def _do(self, parts: Sequence[Part]) -> list[Frame]:
        from pimlip_zoo.datasets.lmdb import write_store

        total, before = self.options.structures or 0, self._done

        def report(count: int) -> None:
            if self.progress is not None:
                self.progress(min(before + count, total), total)

        if self._processes > 1 and self.parts is not None and len(parts) > 1:
            self.parts.mkdir(parents=True, exist_ok=True)
            job = {"supervisor": self.level.name, "options": self.options.model_dump(mode="json")}
            (self.parts / "job.json").write_text(json.dumps(job), encoding="utf-8")
            if not (self.parts / "starts.lmdb").exists():
                write_store(self.parts / "starts.lmdb", self.starts)
        made = do_parts(
            parts,
            self.sampling.make,
            report,
            folder=self.parts,
            processes=self._processes,
            worker=f"from {__name__} import start_worker; start_worker()",
        )
        self._done += len(made)
        return made

    def _estimate(self, structures: int, evaluations: float) -> None:
        """Say what it will take, from some evaluations; share it among processes where it is long.

        Args:
            structures: that are to be labelled.
            evaluations: of the calculator for each of them.
        """
        if self.parts is None or structures < _AT_ONCE:
            return
        number = structures * evaluations
        seconds = self._seconds(number)
        if seconds is None:
            return
        work = number * seconds
        if work > _WORTH_SHARING and _elsewhere(self.level):
            self._processes = cores()
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
        busy = f" on {cores()} cores that others use, too" if load > cores() + _OTHERS else ""
        log.info(
            "weak labels of %s: about %s (%s structures, %.0f evaluations each, %.3g s an evaluation, %s%s); "
            "Ctrl-C keeps what is done, and the same command goes on there%s",
            *(self.level.name, told_duration(work / self._processes), f"{structures:,}"),
            *(evaluations, seconds, _counted(self._processes), busy),
            _FEWER if work / self._processes > _LONG else "",
        )

    def _seconds(self, number: float) -> float | None:
        """The mean time of an evaluation; None where all fail.

        Structures of several sizes are evaluated, a few times each. Where the work is long, this goes on for a while:
        within milliseconds it is not seen that other programs take their turns.

        Args:
            number: of evaluations that are to be done.
        """
        order = np.argsort([len(frame.numbers) for frame in self.starts], kind="stable")
        chosen = dict.fromkeys(int(order[int(part * len(order))]) for part in (0.5, 0.85, 0.15))
        spent: dict[int, list[float]] = {}
        begun, seconds = time.monotonic(), None
        for repeated in range(_MEASUREMENTS):
            for index in chosen:
                atoms = self.sampling.atoms(index)
                atoms.positions += 0.02 * np.cos(np.arange(atoms.positions.size) + repeated).reshape(-1, 3)
                started = time.monotonic()
                if self.sampling.evaluate(atoms, np.inf) is not None:
                    spent.setdefault(index, []).append(time.monotonic() - started)
            if not spent:
                return None
            # The first evaluations set up.
            means = [float(np.mean(times[1:])) if len(times) > 1 else times[0] for times in spent.values()]
            seconds, so_far = float(np.mean(means)), time.monotonic() - begun
            if so_far > min(_MEASURED, 0.05 * number * seconds) and (repeated or so_far > _MEASURED):
                break
        return seconds


def _along(temperatures: Sequence[float], structures: int) -> list[Part]:
    """Trajectories, several at each temperature, which share the structures equally; each has a number of its own."""
    parts: list[Part] = []
    count = len(temperatures)
    apart = max(_APART, -(-structures // count))
    for index, temperature in enumerate(temperatures if structures else ()):
        share = structures // count + (index < structures % count)
        each = max(5, -(-share // 8))
        parts += [
            {
                "kind": "md",
                "number": apart * index + first,
                "count": min(each, share - first),
                "temperature": float(temperature),
            }
            for first in range(0, share, each)
        ]
    return parts


def _elsewhere(level: CheapCalculator) -> bool:
    """Whether other processes can make this calculator from its name, and gain from it."""
    if level.all_cores:
        return False
    try:
        return find_cheap_calculator(level.name, trust=True).version == level.version
    except InputError:
        return False


def start_worker() -> None:
    """What a process that shares the work of a pool does."""
    from pimlip_zoo.datasets.lmdb import FrameStore

    def prepare(about: dict[str, Any]) -> tuple[dict[str, Any], Reply]:
        folder = Path(about["folder"])
        job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
        # The process that started this one has called the function already, where the name is that of one.
        work_for(job["supervisor"])
        level = find_cheap_calculator(job["supervisor"], trust=True)
        starts = list(FrameStore(folder / "starts.lmdb"))
        sampling = PoolSampling(starts, level, PoolOptions(**job["options"]))
        return {}, answer_parts(folder, sampling.make)

    serve(prepare)


def _key(frames: Sequence[Frame], level: CheapCalculator, what: Any) -> str:
    digest = hashlib.sha256()
    digest.update(json.dumps([level.name, level.version, what], sort_keys=True).encode())
    if any(frame.pbc.all() for frame in frames):
        digest.update(b"with stress")  # labels of crystals that were made before have none
    for frame in frames:
        digest.update(geometry_bytes(frame) + electrons_bytes(frame))
    return digest.hexdigest()


def _counted(processes: int) -> str:
    return "1 process" if processes == 1 else f"{processes} processes"
