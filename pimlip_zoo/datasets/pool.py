"""Structures around a training set, with energies and forces from a cheap calculator."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pimlip_zoo.datasets.cheap import Supervisor
from pimlip_zoo.datasets.electrons import give_electrons, stated
from pimlip_zoo.datasets.frame import Frame
from pimlip_zoo.errors import InputError

if TYPE_CHECKING:
    from ase import Atoms

__all__ = ["PoolOptions", "cache_folder", "cached_labels", "label_frames", "labelled_pool", "sample_pool"]

log = logging.getLogger("pimlip_zoo")

Progress = Callable[[int, int], None]
"""Called with how much is done, and of how much."""


@dataclass(frozen=True, kw_only=True)
class PoolOptions:
    """How structures are sampled."""

    structures: int = 1500
    method: str = "md"
    """md, displaced, both (one half each), or given (unlabelled structures as they are, and displaced ones if these
    are too few)."""
    temperatures: tuple[float, ...] = (300.0, 600.0, 900.0)
    """K, of Langevin dynamics with the cheap calculator; they share the structures."""
    timestep: float = 0.5
    """fs."""
    stride: int = 20
    """Steps between structures that are kept."""
    friction: float = 0.02
    """1/fs."""
    amplitudes: tuple[float, ...] = (0.03, 0.08)
    """Å by component, of normal displacements."""
    max_force: float = 50.0
    """eV/Å; structures in which an atom feels more are thrown away."""
    seed: int = 0


def label_frames(
    frames: Sequence[Frame], supervisor: Supervisor, progress: Progress | None = None
) -> list[Frame]:
    """The same structures with the calculator's energies and forces, and stress where they are crystals and it has it.

    Raises:
        InputError: when the calculator fails, naming the structure.
    """
    calculator = supervisor.make()
    _check_electrons(frames, supervisor)
    labelled = []
    for index, frame in enumerate(frames):
        atoms = _atoms(frame)
        atoms.calc = calculator
        try:
            state = _state(atoms)
        except Exception as error:
            raise InputError(
                f"{supervisor.name} fails: {str(error).splitlines()[0] if str(error) else type(error).__name__}",
                frame=index,
            ) from error
        labelled.append(_labelled(frame, state, supervisor))
        if progress is not None:
            progress(index + 1, len(frames))
    return labelled


def sample_pool(
    frames: Sequence[Frame],
    supervisor: Supervisor,
    options: PoolOptions,
    progress: Progress | None = None,
    unlabelled: Sequence[Frame] = (),
) -> list[Frame]:
    """Sample structures around the given ones and label them.

    The dynamics start from random ones of the given structures; every temperature is shared by several trajectories.
    A trajectory that leaves physics (forces above the limit, a failing calculator) is ended and a new one begun.

    Args:
        frames: where sampling starts.
        supervisor: gives forces and labels.
        options: how.
        progress: is told how far it is.
        unlabelled: where sampling starts, too; with the method ``given`` they alone matter.

    Raises:
        InputError: when too few structures stay within the limit of force.
    """
    starts = _starts(frames, unlabelled, options)
    _check_electrons(starts, supervisor)
    if not starts:
        raise InputError("there is no structure to start from", key="weak.labels.pool")
    rng = np.random.default_rng(options.seed)
    pool: list[Frame] = []

    def report(count: int) -> None:
        if progress is not None:
            progress(len(pool) + count, options.structures)

    if options.method == "given":
        pool += _given(unlabelled, supervisor, options, rng, report)
    left = options.structures - len(pool)
    moving = {"md": left, "both": left - left // 2}.get(options.method, 0)
    if left > moving:
        pool += _displaced(starts, supervisor, options, left - moving, rng, report)
    for index, temperature in enumerate(options.temperatures if moving else ()):
        parts = len(options.temperatures)
        share = moving // parts + (index < moving % parts)
        pool += _dynamics(starts, supervisor, options, temperature, share, rng, report)
    return pool


def labelled_pool(
    frames: Sequence[Frame],
    supervisor: Supervisor,
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
        supervisor: the calculator.
        options: how structures are sampled.
        folder: of the cache; None: :func:`cache_folder`.
        progress: is told how far the sampling is.
        unlabelled: see :func:`sample_pool`.
    """
    key = _key(_starts(frames, unlabelled, options), supervisor, _plain(options))
    return _cached(
        folder, supervisor, key, lambda: sample_pool(frames, supervisor, options, progress, unlabelled)
    )


def cached_labels(
    frames: Sequence[Frame],
    supervisor: Supervisor,
    folder: Path | None = None,
    progress: Progress | None = None,
) -> list[Frame]:
    """:func:`label_frames`, from the cache where these structures have been labelled before."""
    key = _key(frames, supervisor, "single points")
    return _cached(folder, supervisor, key, lambda: label_frames(frames, supervisor, progress))


def _cached(
    folder: Path | None, supervisor: Supervisor, key: str, make: Callable[[], list[Frame]]
) -> list[Frame]:
    from pimlip_zoo.datasets.lmdb import FrameStore, write_store

    path = (folder or cache_folder()) / f"{_safe(supervisor.name)}-{key[:20]}.lmdb"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_store(
            path, make(), meta={"supervisor": supervisor.name, "supervisor_version": supervisor.version}
        )
    log.info("labels of %s: %s", supervisor.name, path)
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


def _atoms(frame: Frame) -> Atoms:
    from ase import Atoms

    atoms = Atoms(numbers=frame.numbers, positions=frame.positions, cell=frame.cell, pbc=frame.pbc)
    give_electrons(atoms, stated(frame))
    return atoms


def _check_electrons(frames: Sequence[Frame], supervisor: Supervisor) -> None:
    """Refuse ions where the calculator would label them as neutral without a word."""
    if supervisor.charged:
        return
    for index, frame in enumerate(frames):
        if electrons := stated(frame):
            said = ", ".join(f"{key} {value}" for key, value in electrons.items())
            raise InputError(
                f"{supervisor.name} knows nothing of {said}",
                frame=index,
                key="weak.labels.calculator",
                mend="use one that does, such as gfn2, or leave these structures out",
            )


class _State(NamedTuple):
    """What a calculator says of a structure."""

    energy: float
    forces: NDArray[np.float64]
    stress: NDArray[np.float64] | None
    """(3, 3) eV/Å³; None where the structure is not periodic in all directions, or the calculator has none."""


def _state(atoms: Atoms) -> _State:
    energy, forces = float(atoms.get_potential_energy()), np.array(atoms.get_forces())
    stress = None
    if atoms.pbc.all() and "stress" in getattr(atoms.calc, "implemented_properties", ()):
        stress = np.array(atoms.get_stress(voigt=False))
    return _State(energy, forces, stress)


def _labelled(frame: Frame, state: _State, supervisor: Supervisor, **info: Any) -> Frame:
    return replace(
        frame,
        energy=state.energy,
        forces=state.forces,
        stress=state.stress,
        weight=1.0,
        info={"supervisor": supervisor.name, **info, **stated(frame)},
    )


def _starts(frames: Sequence[Frame], unlabelled: Sequence[Frame], options: PoolOptions) -> Sequence[Frame]:
    """Where sampling starts. Given structures are the same whichever of the others are labelled."""
    return unlabelled if options.method == "given" else [*frames, *unlabelled]


def _given(
    frames: Sequence[Frame],
    supervisor: Supervisor,
    options: PoolOptions,
    rng: np.random.Generator,
    report: Callable[[int], None],
) -> list[Frame]:
    """Structures as they are, those left out that the calculator cannot do or pushes apart."""
    calculator, pool = supervisor.make(), list[Frame]()
    for index in rng.permutation(len(frames)).tolist():
        if len(pool) == options.structures:
            break
        atoms = _atoms(frames[index])
        atoms.calc = calculator
        state = _evaluate(atoms, options.max_force)
        if state is not None:
            pool.append(_labelled(frames[index], state, supervisor))
            report(len(pool))
    return pool


def _displaced(
    frames: Sequence[Frame],
    supervisor: Supervisor,
    options: PoolOptions,
    count: int,
    rng: np.random.Generator,
    report: Callable[[int], None],
) -> list[Frame]:
    calculator, pool, failures = supervisor.make(), list[Frame](), 0
    while len(pool) < count:
        frame = frames[int(rng.integers(len(frames)))]
        amplitude = options.amplitudes[len(pool) % len(options.amplitudes)]
        d = rng.normal(0.0, amplitude, frame.positions.shape)
        atoms = _atoms(frame)
        atoms.positions += d - d.mean(axis=0)
        atoms.calc = calculator
        state = _evaluate(atoms, options.max_force)
        if state is None:
            failures += 1
            _give_up(failures, count, supervisor)
            continue
        moved = replace(frame, positions=atoms.positions.copy())
        pool.append(_labelled(moved, state, supervisor, displaced=float(amplitude)))
        report(len(pool))
    return pool


def _dynamics(
    frames: Sequence[Frame],
    supervisor: Supervisor,
    options: PoolOptions,
    temperature: float,
    count: int,
    rng: np.random.Generator,
    report: Callable[[int], None],
) -> list[Frame]:
    from ase import units
    from ase.md.langevin import Langevin
    from ase.md.velocitydistribution import MaxwellBoltzmannDistribution, Stationary

    pool: list[Frame] = []
    failures = 0
    per_trajectory = max(5, -(-count // 8))
    while len(pool) < count:
        frame = frames[int(rng.integers(len(frames)))]
        atoms = _atoms(frame)
        atoms.calc = supervisor.make()
        # Single atoms and other structures without inner motion are sampled as they are.
        random_state = np.random.RandomState(int(rng.integers(2**31)))
        MaxwellBoltzmannDistribution(atoms, temperature_K=temperature, rng=random_state)
        if len(atoms) > 1:
            Stationary(atoms)
        dynamics = Langevin(
            atoms,
            options.timestep * units.fs,
            temperature_K=temperature,
            friction=options.friction / units.fs,
            fixcm=False,  # where the pool's structures are in space does not matter
            rng=random_state,
        )
        kept = 0
        for step in range(per_trajectory + 2):
            try:
                dynamics.run(options.stride)
            except Exception:  # noqa: BLE001  (each calculator has its own way of failing on absurd structures)
                break
            state = _evaluate(atoms, options.max_force)
            if state is None:
                break
            if step < 2:
                continue  # away from the starting structure, towards the temperature
            moved = replace(frame, positions=atoms.positions.copy())
            pool.append(_labelled(moved, state, supervisor, temperature=float(temperature)))
            kept += 1
            report(len(pool))
            if len(pool) == count:
                break
        if kept == 0:
            failures += 1
            _give_up(failures * per_trajectory, count, supervisor)
    return pool


def _evaluate(atoms: Atoms, max_force: float) -> _State | None:
    """What the calculator says, None where it fails or a force is beyond the limit."""
    try:
        state = _state(atoms)
    except Exception:  # noqa: BLE001  (each calculator has its own way of failing on absurd structures)
        return None
    largest = float(np.linalg.norm(state.forces, axis=1).max(initial=0.0))
    finite = np.isfinite(state.energy) and (state.stress is None or np.isfinite(state.stress).all())
    return state if finite and largest <= max_force else None


def _give_up(failures: int, count: int, supervisor: Supervisor) -> None:
    if failures > 20 + count:
        raise InputError(
            f"{supervisor.name} finds hardly any structure with forces below the limit",
            key="weak.labels.pool",
            mend="lower the temperatures or amplitudes, raise max_force, or check that it knows the elements",
        )


def _key(frames: Sequence[Frame], supervisor: Supervisor, what: Any) -> str:
    digest = hashlib.sha256()
    digest.update(json.dumps([supervisor.name, supervisor.version, what], sort_keys=True).encode())
    if any(frame.pbc.all() for frame in frames):
        digest.update(b"with stress")  # labels of crystals that were made before have none
    for frame in frames:
        for array, kind in (
            (frame.numbers, np.int64),
            (frame.positions, np.float64),
            (frame.cell, np.float64),
            (frame.pbc, np.bool_),
        ):
            digest.update(np.ascontiguousarray(array, dtype=kind).tobytes())
        if electrons := stated(frame):
            digest.update(json.dumps(electrons, sort_keys=True).encode())
    return digest.hexdigest()


def _plain(options: PoolOptions) -> dict[str, Any]:
    from dataclasses import asdict

    return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(options).items()}
