"""A stability gate: what a model of small errors has to pass before it is trusted in a simulation.

Two questions that test errors do not answer: does the energy rise when two atoms are pushed together, and does
a molecule or crystal survive dynamics at constant energy?
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from itertools import combinations_with_replacement
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pimlip_zoo.deploy.md import MDResult, MDSettings, run_md
from pimlip_zoo.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ase import Atoms
    from ase.calculators.calculator import Calculator
    from numpy.typing import NDArray

    from pimlip_zoo.deploy.stability import StabilityLimits

_SHORTEST, _LONGEST = 0.4, 1.0  # times the sum of covalent radii
_NOISE = 1e-3  # eV, below which a step of a scan is flat


@dataclass(frozen=True)
class DimerScan:
    """Energy of two atoms against their distance, from bond length inwards."""

    symbols: tuple[str, str]
    distances: NDArray[np.float64]
    """(D,) Å, descending."""
    energies: NDArray[np.float64]
    """(D,) eV."""

    @property
    def wall(self) -> float:
        """How far the shortest distance lies above the minimum of the scan, eV."""
        return float(self.energies[-1] - self.energies.min())

    @property
    def hole(self) -> float | None:
        """Å: the largest distance below the scan's outer minimum from which going on inwards leads downhill.

        None for a wall that rises all the way. Atoms that come this close in a hot simulation fall in.
        """
        if not np.isfinite(self.energies).all():
            return float(self.distances[int(np.argmin(np.isfinite(self.energies)))])
        steps = np.diff(self.energies)
        rising = np.flatnonzero(steps > _NOISE)
        if len(rising) == 0:
            return float(self.distances[0])
        falling = np.flatnonzero(steps < -_NOISE)
        inside = falling[falling > rising[0]]
        return float(self.distances[inside[0]]) if len(inside) else None


@dataclass(frozen=True)
class GateResult:
    """What the gate found."""

    dynamics: MDResult
    dimers: tuple[DimerScan, ...]

    @property
    def passed(self) -> bool:
        """Whether the dynamics were stable.

        Holes do not count: a free dimer is far from most training data, and a molecule may never come there.
        """
        return self.dynamics.stable

    @property
    def sentences(self) -> list[str]:
        """The findings, one line each."""
        lines = [f"dynamics: {self.dynamics.verdict}"]
        for scan in self.dimers:
            pair = "-".join(scan.symbols)
            if scan.hole is not None:
                lines.append(
                    f"{pair}: no wall, the energy falls inwards of {scan.hole:.2f} Å; consider ZBL repulsion"
                )
        return lines


def scan_dimer(calculator: Calculator, symbols: tuple[str, str], *, points: int = 25) -> DimerScan:
    """Energy of two atoms in free space from 1.0 to 0.4 times the sum of their covalent radii.

    Args:
        calculator: knows both elements.
        symbols: of the two atoms.
        points: how many distances.
    """
    from ase import Atoms
    from ase.data import atomic_numbers, covalent_radii

    radius = sum(covalent_radii[atomic_numbers[symbol]] for symbol in symbols)
    distances = np.linspace(_LONGEST, _SHORTEST, points) * radius
    energies = []
    for distance in distances:
        dimer = Atoms(list(symbols), positions=[[0, 0, 0], [0, 0, distance]])
        dimer.calc = calculator
        energies.append(float(dimer.get_potential_energy()))
    return DimerScan(symbols, distances, np.array(energies))


def stability_gate(
    atoms: Atoms,
    *,
    species: Sequence[str] | None = None,
    temperature: float = 300.0,
    steps: int = 2000,
    timestep: float = 0.5,
    seed: int = 0,
    limits: StabilityLimits | None = None,
    out: Path | None = None,
    progress: Callable[[dict[str, float]], None] | None = None,
) -> GateResult:
    """Dimers of all pairs of elements, then dynamics at constant energy.

    The initial velocities are drawn for twice the temperature, which a structure near its minimum then has on
    average: half of the kinetic energy becomes potential energy.

    Args:
        atoms: a structure with a calculator; not moved.
        species: elements of the dimers, by default those of the structure.
        temperature: K, of the dynamics.
        steps: of the dynamics.
        timestep: fs.
        seed: of the initial velocities.
        limits: what counts as unstable.
        out: folder that keeps trajectory and log; thrown away if not given.
        progress: called with each line of the log.

    Raises:
        InputError: as :func:`~pimlip_zoo.deploy.md.run_md`.
    """
    if len(atoms) == 0:
        raise InputError("the structure has no atoms", key="structure")
    elements = sorted(set(atoms.symbols)) if species is None else list(species)
    dimers = tuple(scan_dimer(atoms.calc, pair) for pair in combinations_with_replacement(elements, 2))
    moved = atoms.copy()
    moved.calc = atoms.calc
    settings = MDSettings(
        ensemble="nve", temperature=2 * temperature, steps=steps, timestep=timestep, seed=seed, interval=10
    )
    with tempfile.TemporaryDirectory(prefix="pimlip-gate-") as scratch:
        folder = Path(scratch) if out is None else out
        dynamics = run_md(moved, settings, folder, limits=limits, progress=progress)
    return GateResult(dynamics, dimers)
