"""Structure and motion of a liquid, from one simulation."""

from __future__ import annotations

import tempfile
from itertools import combinations_with_replacement
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from pydantic import Field

from pimlip_zoo.physics.crystal import widths
from pimlip_zoo.physics.property import Findings, NotPossibleError, Options, Work, register_property

if TYPE_CHECKING:
    from ase import Atoms
    from numpy.typing import NDArray

    from pimlip_zoo.physics.task import Task

_BIN = 0.05  # Å
_MOST_ELEMENTS = 4
_PER_PS = 10.0
"""Å²/ps in 10⁻⁹ m²/s."""
_PARTS = 4
_FRAMES = 6  # of a part, at least: two lags in the half of them that the slope is fitted to
_UNSURE = 0.3
_FREE = 1.0  # Å², that atoms move before their motion says anything of diffusion


class LiquidOptions(Options):
    """Of the simulation; rdf and diffusion share it where their options are the same."""

    temperature: float = Field(default=300.0, gt=0)
    """K."""
    timestep: float | None = Field(default=None, gt=0)
    """fs; None: 0.5 with hydrogen, otherwise 2."""
    equilibration: int = Field(default=1000, ge=0)
    """Steps of Langevin dynamics at the temperature, before."""
    steps: int = Field(default=4000, ge=100)
    """Steps at constant energy, from which everything is measured."""
    interval: int = Field(default=20, ge=1)
    """Steps between frames."""
    seed: int = Field(default=0, ge=0)
    """Of the velocities."""


class DiffusionOptions(LiquidOptions):
    """Of the diffusion coefficient."""


class _Trajectory(NamedTuple):
    frames: list[Atoms]
    """Of the simulation at constant energy, not wrapped."""
    spacing: float
    """ps, between frames."""
    temperature: float
    """K, mean."""
    verdict: str | None
    """What was wrong with the simulation; None: nothing."""


def _cost(task: Task, options: LiquidOptions) -> list[Work]:
    return [Work(options.equilibration + options.steps, len(task.structure), _key(options))]


def _key(options: LiquidOptions) -> str:
    return f"liquid {options.model_dump_json()}"


@register_property("rdf", kinds=("liquid",), cost=_cost, options=LiquidOptions)
def rdf(task: Task, options: LiquidOptions, found: Findings) -> None:
    """Radial distribution functions of a liquid, by pair of elements, and their first peaks."""
    from ase.geometry.rdf import get_rdf

    trajectory = _simulated(task, options, found)
    first = trajectory.frames[0]
    reach = float(widths(first).min()) / 2 - 1e-3
    bins = max(10, int(reach / _BIN))
    elements = task.elements
    if len(elements) > _MOST_ELEMENTS:
        found.notes.append(f"of {len(elements)} elements only all atoms together")
        elements = []
    pairs = list(combinations_with_replacement(elements, 2)) if len(elements) > 1 else []
    curves = {"all": np.zeros(bins)} | {f"{a}-{b}": np.zeros(bins) for a, b in pairs}
    distances = np.zeros(bins)
    for frame in trajectory.frames:
        matrix = frame.get_all_distances(mic=True)
        for name in curves:
            numbers = None if name == "all" else _numbers(name)
            values, distances = get_rdf(frame, reach, bins, distance_matrix=matrix, elements=numbers)
            curves[name] += values
    found.series |= {"distances": distances.tolist(), "temperature": trajectory.temperature}
    for name, values in curves.items():
        mean = values / len(trajectory.frames)
        found.series[f"g_{name}"] = mean.tolist()
        place = _first_peak(mean)
        if place is not None:
            found.add(f"peak_position_{name}", distances[place], "Å")
            found.add(f"peak_height_{name}", mean[place])
    found.add("temperature", trajectory.temperature, "K")


@register_property("diffusion", kinds=("liquid",), cost=_cost, options=DiffusionOptions)
def diffusion(task: Task, options: DiffusionOptions, found: Findings) -> None:
    """Self-diffusion coefficients by element, from mean square displacements at constant energy.

    Einstein's relation over the second half of the lags; the drift of the whole is taken off; not corrected for the
    size of the cell (I.-C. Yeh, G. Hummer, J. Phys. Chem. B 108, 15873 (2004)). Errors are of parts of the simulation.
    """
    trajectory = _simulated(task, options, found)
    positions = np.array([frame.get_positions() for frame in trajectory.frames])
    masses = trajectory.frames[0].get_masses()
    positions -= np.einsum("tna,n->ta", positions, masses)[:, None] / masses.sum()
    symbols = np.array(trajectory.frames[0].symbols)
    if len(positions) < _FRAMES * _PARTS:
        raise NotPossibleError(
            f"{len(positions)} frames are fewer than {_FRAMES * _PARTS}: raise diffusion.steps, "
            "or lower diffusion.interval"
        )
    found.add("temperature", trajectory.temperature, "K")
    for element in task.elements:
        of_element = positions[:, symbols == element]
        lags, squares = mean_square_displacement(of_element)
        found.series |= {"times": (lags * trajectory.spacing).tolist(), f"msd_{element}": squares.tolist()}
        value = diffusion_coefficient(of_element, trajectory.spacing)
        parts = [
            diffusion_coefficient(part, trajectory.spacing) for part in np.array_split(of_element, _PARTS)
        ]
        error = float(np.std(parts, ddof=1) / np.sqrt(_PARTS))
        found.add(f"coefficient_{element}", _PER_PS * value, "1e-9 m²/s")
        found.add(f"standard_error_{element}", _PER_PS * error, "1e-9 m²/s")
        if error > _UNSURE * abs(value):
            found.doubts.append(
                f"{element}: the standard error is {100 * error / max(abs(value), 1e-12):.0f} % of the coefficient: "
                "simulate longer"
            )
        if squares[-1] < _FREE:
            found.doubts.append(
                f"{element} moved by {np.sqrt(squares[-1]):.2f} Å only: the simulation is too short for diffusion, or "
                "nothing diffuses"
            )


def mean_square_displacement(positions: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Of (T, N, 3) Å for lags up to half of the frames: lags and Å², averaged over atoms and starts."""
    lags = np.arange(1, len(positions) // 2 + 1)
    squares = [np.square(positions[lag:] - positions[:-lag]).sum(axis=-1).mean() for lag in lags]
    return lags, np.array(squares)


def diffusion_coefficient(positions: NDArray[np.float64], spacing: float) -> float:
    """A sixth of the slope of the mean square displacement, Å² per unit of time.

    Args:
        positions: (T, N, 3) Å, not wrapped.
        spacing: time between frames.
    """
    lags, squares = mean_square_displacement(positions)
    half = len(lags) // 2
    slope = np.polyfit(lags[half:] * spacing, squares[half:], 1)[0]
    return float(slope) / 6


def _simulated(task: Task, options: LiquidOptions, found: Findings) -> _Trajectory:
    """The simulation, the same for all properties that want the same one."""
    trajectory = task.shared(_key(options), lambda: _simulate(task, options))
    if trajectory.verdict is not None:
        found.doubts.append(trajectory.verdict)
    return trajectory


def _simulate(task: Task, options: LiquidOptions) -> _Trajectory:
    import ase.io

    from pimlip_zoo.deploy.md import MDSettings, run_md

    atoms = task.asked(task.structure)
    timestep = options.timestep or (0.5 if "H" in task.elements else 2.0)

    def run(folder: Path, ensemble: str, steps: int, *, keep: bool) -> str | None:
        settings = MDSettings(
            ensemble=ensemble,
            temperature=options.temperature,
            steps=steps,
            timestep=timestep,
            seed=options.seed,
            interval=options.interval,
            keep_velocities=keep,
        )
        result = run_md(atoms, settings, folder)
        return None if result.stable else result.verdict

    with tempfile.TemporaryDirectory(prefix="pimlip-liquid-") as scratch:
        fault = run(Path(scratch, "before"), "nvt", options.equilibration, keep=False)
        if fault is not None:
            raise NotPossibleError(f"the simulation before the measurement is {fault}")
        fault = run(Path(scratch, "measured"), "nve", options.steps, keep=True)
        frames = ase.io.read(Path(scratch, "measured", "trajectory.extxyz"), ":")
    temperatures = [frame.get_temperature() for frame in frames]
    if len(frames) < 2:
        raise NotPossibleError(f"the simulation is {fault or 'too short'}")
    verdict = None if fault is None else f"only the part before it became unstable: {fault}"
    return _Trajectory(frames, options.interval * timestep / 1000, float(np.mean(temperatures)), verdict)


def _numbers(pair: str) -> tuple[int, int]:
    from ase.data import atomic_numbers

    first, second = pair.split("-")
    return atomic_numbers[first], atomic_numbers[second]


def _first_peak(values: NDArray[np.float64]) -> int | None:
    """Of a radial distribution function: its maximum up to the first place where it falls below one after a rise."""
    above = np.flatnonzero(values > 1)
    if len(above) == 0:
        return None
    start = int(above[0])
    below = np.flatnonzero(values[start:] < 1)
    end = start + int(below[0]) if len(below) else len(values)
    return start + int(np.argmax(values[start:end]))
