"""Phonons by small displacements: phonopy where it is installed, ASE otherwise."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from pimlip_zoo.physics.crystal import repeats, widths
from pimlip_zoo.physics.property import Findings, Options, Work, register_property

if TYPE_CHECKING:
    from ase import Atoms
    from numpy.typing import NDArray

    from pimlip_zoo.physics.judge import Judge
    from pimlip_zoo.physics.task import Task

Frequencies = Callable[["NDArray[np.float64]"], "NDArray[np.float64]"]
"""THz, (Q, 3N), imaginary ones as negative numbers, at the wave vectors (Q, 3) in reciprocal lattice units."""

_IMAGINARY = 0.05  # THz
_MESH = 8
_KELVIN = 300.0


class PhononOptions(Options):
    """Of the phonons."""

    width: float = Field(default=12.0, gt=0)
    """Å, least width of the supercell; twice the reach of the potential for complete force constants."""
    most_atoms: int = Field(default=400, ge=1)
    """Of the supercell, which is made narrower for it."""
    step: float = Field(default=0.01, gt=0, le=0.2)
    """Å, of the displacements."""
    points: int = Field(default=80, ge=2)
    """Of the drawn path through the Brillouin zone."""


def _supercell(atoms: Atoms, options: PhononOptions) -> tuple[int, int, int]:
    return repeats(atoms, options.width, options.most_atoms)


def _cost(task: Task, options: PhononOptions) -> list[Work]:
    atoms = task.sketch()
    return [Work(6 * len(atoms) + 1, len(atoms) * int(np.prod(_supercell(atoms, options))))]


@register_property("phonons", kinds=("crystal",), cost=_cost, options=PhononOptions)
def phonons(task: Task, options: PhononOptions, found: Findings) -> None:
    """Phonon frequencies at the special points, zero-point energy, heat capacity, imaginary modes.

    Force constants are differences of forces in a supercell, symmetrised by the acoustic sum rule; how far they were
    from it is said as the frequency of the acoustic modes at Γ before.
    """
    crystal = task.crystal(found)
    numbers = _supercell(crystal.atoms, options)
    narrowest = float((widths(crystal.atoms) * numbers).min())
    if task.cutoff is not None and narrowest < 2 * task.cutoff and narrowest < options.width:
        found.doubts.append(
            f"the supercell is {narrowest:.1f} Å wide, twice the cutoff is {2 * task.cutoff:.1f} Å: raise "
            "phonons.most_atoms"
        )
    made = by_phonopy(crystal.atoms, task.judge, numbers, options.step)
    if made is None:
        found.notes.append(
            "by ASE, without symmetry, as phonopy is not installed (pip install 'pimlip-zoo[physics]')"
        )
        made = by_ase(crystal.atoms, task.judge, numbers, options.step)
    frequencies, raw = made
    origin = np.zeros((1, 3))
    found.add("acoustic_residual", np.sort(np.abs(raw(origin)[0]))[:3].max(), "THz")
    found.series["supercell"] = list(numbers)
    path = crystal.lattice.bandpath(npoints=options.points)
    special = {name: point for name, point in path.special_points.items() if name in path.path}
    for name, point in special.items():
        values = np.sort(frequencies(np.array([point]))[0])
        if name == "G":
            values = values[np.sort(np.argsort(np.abs(values))[3:])]
        if len(values):
            found.add(f"frequencies_{name}", values, "THz")
    bands = frequencies(np.array(path.kpts))
    places, ticks, labels = path.get_linear_kpoint_axis()
    found.series |= {
        "path": places.tolist(),
        "bands": bands.tolist(),
        "ticks": ticks.tolist(),
        "labels": list(labels),
    }
    mesh = _mesh()
    everywhere = frequencies(mesh)
    lowest = float(min(bands.min(), everywhere.min()))
    found.add("highest", max(bands.max(), everywhere.max()), "THz")
    found.add("lowest", lowest, "THz")
    if lowest < -_IMAGINARY:
        found.doubts.append(
            f"the crystal is dynamically unstable: frequencies reach {-lowest:.2g}i THz; no zero-point energy is given"
        )
        return
    _add_thermal(everywhere, len(crystal.atoms), found)


def by_phonopy(
    atoms: Atoms, judge: Judge, numbers: tuple[int, int, int], step: float
) -> tuple[Frequencies, Frequencies] | None:
    """Frequencies with the acoustic sum rule and without; None where phonopy is not installed."""
    try:
        from phonopy import Phonopy
        from phonopy.structure.atoms import PhonopyAtoms
    except ImportError:
        return None
    from ase import Atoms as AseAtoms

    cell = PhonopyAtoms(
        symbols=list(atoms.symbols),
        cell=np.array(atoms.cell),
        scaled_positions=atoms.get_scaled_positions(),
        masses=atoms.get_masses(),
    )
    engine = Phonopy(cell, supercell_matrix=np.diag(numbers), primitive_matrix=np.eye(3))
    engine.generate_displacements(distance=step)
    forces = []
    for displaced in [engine.supercell, *engine.supercells_with_displacements]:
        structure = AseAtoms(
            symbols=displaced.symbols,
            cell=displaced.cell,
            scaled_positions=displaced.scaled_positions,
            pbc=True,
        )
        structure.calc = judge
        forces.append(structure.get_forces())
    # What is left of forces without displacement is no response to one.
    engine.forces = [each - forces[0] for each in forces[1:]]
    engine.produce_force_constants()
    raw = engine.force_constants.copy()
    engine.symmetrize_force_constants()
    ruled = engine.force_constants.copy()

    def with_constants(constants: NDArray[np.float64]) -> Frequencies:
        def frequencies(points: NDArray[np.float64]) -> NDArray[np.float64]:
            engine.force_constants = constants
            engine.run_qpoints(points)
            return np.array(engine.qpoints.frequencies)

        return frequencies

    return with_constants(ruled), with_constants(raw)


def by_ase(
    atoms: Atoms, judge: Judge, numbers: tuple[int, int, int], step: float
) -> tuple[Frequencies, Frequencies]:
    """Frequencies with the acoustic sum rule and without, by ASE."""
    import tempfile
    from pathlib import Path

    from ase import units
    from ase.phonons import Phonons

    results = []
    with tempfile.TemporaryDirectory(prefix="pimlip-phonons-") as folder:
        name = str(Path(folder, "phonon"))
        Phonons(atoms, judge, supercell=numbers, delta=step, name=name).run()
        for acoustic in (True, False):
            engine = Phonons(atoms, judge, supercell=numbers, delta=step, name=name)
            engine.read(acoustic=acoustic)
            results.append(engine)
    terahertz = 1e-12 / (units._hplanck / units._e)  # noqa: SLF001 - ASE's values of the constants

    def of(engine: Any) -> Frequencies:
        return lambda points: np.array(engine.band_structure(points, verbose=False)) * terahertz

    return of(results[0]), of(results[1])


def _mesh() -> NDArray[np.float64]:
    """A mesh of wave vectors without Γ."""
    from ase.dft.kpoints import monkhorst_pack

    return np.array(monkhorst_pack((_MESH, _MESH, _MESH)))


def _add_thermal(frequencies: NDArray[np.float64], atoms: int, found: Findings) -> None:
    """Zero-point energy and heat capacity of independent oscillators."""
    from ase import units

    quantum = frequencies.clip(min=1e-3) * 1e12 * units._hplanck / units._e  # noqa: SLF001
    weight = len(frequencies) * atoms
    found.add("zero_point_energy", 1000 * quantum.sum() / 2 / weight, "meV/atom")
    reduced = quantum / (units.kB * _KELVIN)
    capacity = np.square(reduced / 2 / np.sinh(reduced / 2)).sum() / weight
    found.add("heat_capacity_300K", capacity, "kB/atom")
