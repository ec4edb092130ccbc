"""How the structures of a pool come about, one after the other: as they are, displaced, or along dynamics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pimlip_zoo.datasets.electrons import give_electrons, stated
from pimlip_zoo.datasets.frame import Frame
from pimlip_zoo.errors import InputError, reason_of
from pimlip_zoo.weak_labels.calculators import CheapCalculator
from pimlip_zoo.weak_labels.pool_work import Part

if TYPE_CHECKING:
    from ase import Atoms
    from ase.calculators.calculator import Calculator

    from pimlip_zoo.weak_labels.pool import PoolOptions

Report = Callable[[int], None]
"""Is told how many structures of a part there are."""


class _State(NamedTuple):
    """What a calculator says of a structure."""

    energy: float
    forces: NDArray[np.float64]
    stress: NDArray[np.float64] | None
    """(3, 3) eV/Å³; None where the structure is not periodic in all directions, or the calculator has none."""


class PoolSampling:
    """Makes and labels structures.

    Args:
        starts: where sampling starts, or what is labelled.
        level: the cheap calculator.
        options: how structures are sampled.
    """

    def __init__(self, starts: Sequence[Frame], level: CheapCalculator, options: PoolOptions) -> None:
        self.starts, self.level, self.options = starts, level, options
        self._calculator: Calculator | None = None
        self._failure: Exception | None = None

    @property
    def calculator(self) -> Calculator:
        """One for all structures of this process, but for those along dynamics."""
        if self._calculator is None:
            self._calculator = self.level.make()
        return self._calculator

    def make(self, part: Part, report: Report) -> list[Frame]:
        """The frames of a part; its random numbers are its own."""
        kind = part["kind"]
        rng = np.random.default_rng([self.options.seed, len(kind), part["number"]])
        if kind == "md":
            return self._along_dynamics(part["temperature"], part["count"], rng, report)
        if kind == "displaced":
            return self._displaced(part["indices"], rng, report)
        return (
            self._given(part["indices"], report) if kind == "given" else self.labels(part["indices"], report)
        )

    def atoms(self, index: int) -> Atoms:
        """A start with the calculator."""
        atoms = _atoms(self.starts[index])
        atoms.calc = self.calculator
        return atoms

    def labels(self, indices: Sequence[int], report: Report) -> list[Frame]:
        """Structures as they are; one that the calculator cannot do is an error.

        Raises:
            InputError: naming the structure.
        """
        labelled: list[Frame] = []
        for index in indices:
            atoms = self.atoms(index)
            try:
                state = _state(atoms)
            except Exception as error:
                raise InputError(f"{self.level.name} fails: {reason_of(error)}", frame=index) from error
            labelled.append(self._labelled(self.starts[index], state))
            report(len(labelled))
        return labelled

    def evaluate(self, atoms: Atoms, max_force: float | None = None) -> _State | None:
        """What the calculator says, None where it fails or a force is beyond the limit.

        Args:
            atoms: with a calculator.
            max_force: eV/Å, the limit; None: that of the options.
        """
        self._failure = None
        try:
            state = _state(atoms)
        except Exception as error:  # noqa: BLE001  (each calculator has its own way of failing on absurd structures)
            self._failure = error
            return None
        largest = float(np.linalg.norm(state.forces, axis=1).max(initial=0.0))
        finite = np.isfinite(state.energy) and (state.stress is None or np.isfinite(state.stress).all())
        return state if finite and largest <= (max_force or self.options.max_force) else None

    def _given(self, indices: Sequence[int], report: Report) -> list[Frame]:
        """Structures as they are, those left out that the calculator cannot do or pushes apart."""
        pool: list[Frame] = []
        for index in indices:
            state = self.evaluate(self.atoms(index))
            if state is not None:
                pool.append(self._labelled(self.starts[index], state))
                report(len(pool))
        return pool

    def _displaced(self, places: Sequence[int], rng: np.random.Generator, report: Report) -> list[Frame]:
        pool, failures, count = list[Frame](), 0, len(places)
        amplitudes = self.options.amplitudes
        while len(pool) < count:
            index = int(rng.integers(len(self.starts)))
            amplitude = amplitudes[places[len(pool)] % len(amplitudes)]
            atoms = self.atoms(index)
            d = rng.normal(0.0, amplitude, atoms.positions.shape)
            atoms.positions += d - d.mean(axis=0)
            state = self.evaluate(atoms)
            if state is None:
                failures += 1
                self._give_up(failures, count)
                continue
            moved = replace(self.starts[index], positions=atoms.positions.copy())
            pool.append(self._labelled(moved, state, displaced=float(amplitude)))
            report(len(pool))
        return pool

    def _along_dynamics(
        self, temperature: float, count: int, rng: np.random.Generator, report: Report
    ) -> list[Frame]:
        from ase import units
        from ase.md.langevin import Langevin
        from ase.md.velocitydistribution import MaxwellBoltzmannDistribution, Stationary

        pool: list[Frame] = []
        failures = 0
        while len(pool) < count:
            frame = self.starts[int(rng.integers(len(self.starts)))]
            atoms = _atoms(frame)
            atoms.calc = self.level.make()
            # Single atoms and other structures without inner motion are sampled as they are.
            random_state = np.random.RandomState(int(rng.integers(2**31)))
            MaxwellBoltzmannDistribution(atoms, temperature_K=temperature, rng=random_state)
            if len(atoms) > 1:
                Stationary(atoms)
            dynamics = Langevin(
                atoms,
                self.options.timestep * units.fs,
                temperature_K=temperature,
                friction=self.options.friction / units.fs,
                fixcm=False,  # where the pool's structures are in space does not matter
                rng=random_state,
            )
            before = len(pool)
            for step in range(count + 2):
                try:
                    dynamics.run(self.options.stride)
                except Exception as error:  # noqa: BLE001  (likewise)
                    self._failure = error
                    break
                state = self.evaluate(atoms)
                if state is None:
                    break
                if step < 2:
                    continue  # away from the starting structure, towards the temperature
                moved = replace(frame, positions=atoms.positions.copy())
                pool.append(self._labelled(moved, state, temperature=float(temperature)))
                report(len(pool))
                if len(pool) == count:
                    break
            if len(pool) == before:
                failures += 1
                self._give_up(failures, 10)
        return pool

    def _give_up(self, failures: int, count: int) -> None:
        if failures <= 50 + 20 * count:
            return
        name = self.level.name
        if self._failure is not None:
            raise InputError(
                f"{name} fails at nearly every structure, at last with: {reason_of(self._failure)}",
                key="weak.labels.pool",
                hint="lower the temperatures or amplitudes, or check that it knows the elements",
            ) from self._failure
        raise InputError(
            f"{name} finds hardly any structure with forces below the limit",
            key="weak.labels.pool",
            hint="lower the temperatures or amplitudes, raise max_force, or check that it knows the elements",
        )

    def _labelled(self, frame: Frame, state: _State, **info: Any) -> Frame:
        return replace(
            frame,
            energy=state.energy,
            forces=state.forces,
            stress=state.stress,
            weight=1.0,
            info={"supervisor": self.level.name, **info, **stated(frame)},
        )


def _state(atoms: Atoms) -> _State:
    energy, forces = float(atoms.get_potential_energy()), np.array(atoms.get_forces())
    stress = None
    if atoms.pbc.all() and "stress" in getattr(atoms.calc, "implemented_properties", ()):
        stress = np.array(atoms.get_stress(voigt=False))
    return _State(energy, forces, stress)


def _atoms(frame: Frame) -> Atoms:
    from ase import Atoms

    atoms = Atoms(numbers=frame.numbers, positions=frame.positions, cell=frame.cell, pbc=frame.pbc)
    give_electrons(atoms, stated(frame))
    return atoms
