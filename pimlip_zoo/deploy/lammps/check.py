"""Runs an exported file in the LAMMPS that is installed, and compares with its evaluation in Python."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from pimlip_zoo.datasets.frame import Frame
from pimlip_zoo.datasets.neighbours import frame_to_sample
from pimlip_zoo.deploy.lammps.data import has_charges, in_lammps_axes, write_data
from pimlip_zoo.deploy.lammps.quote import lammps_word
from pimlip_zoo.deploy.lammps.run import run_lammps
from pimlip_zoo.deploy.loading import load_exported
from pimlip_zoo.deploy.selfcheck import check_structures, from_edges, pair_style_inputs, tolerance

if TYPE_CHECKING:
    from ase import Atoms

    from pimlip_zoo.graph import AtomGraph

BAR = 1.6021765e6
"""LAMMPS' factor from eV/Å³ to bar in metal units (``nktv2p``)."""

_VOIGT = [0, 3, 4, 3, 1, 5, 4, 5, 2]  # xx, yy, zz, xy, xz, yz as a matrix
_CENTROID = [0, 3, 4, 6, 1, 5, 7, 8, 2]  # xx, yy, zz, xy, xz, yz, yx, zx, zy as a matrix
_SCRIPT = """clear
units {units}
atom_style {style}
boundary {boundary}
newton {newton}
plugin load {plugin}
read_data structure.{index}.data
pair_style pimlip {options}
pair_coeff * * {model} {elements}
compute virial all pressure NULL virial
compute energy all pe/atom
{stress}
thermo_style custom step pe vol c_virial[*]
dump rows all custom 1 rows.{index}.txt id fx fy fz c_energy x y z{components}
dump_modify rows sort id format float %.17g
run 0
print "$(pe:%.17g) $(vol:%.17g) $(c_virial[1]:%.17g) $(c_virial[2]:%.17g) $(c_virial[3]:%.17g) &
$(c_virial[4]:%.17g) $(c_virial[5]:%.17g) $(c_virial[6]:%.17g)" file global.{index}.txt
"""


@dataclass(frozen=True)
class SinglePoint:
    """What LAMMPS says of a structure, in eV and Å, and in the axes in which it was given."""

    energy: float
    forces: NDArray[np.float64]
    """(N, 3) in the order of the atoms."""
    virial: NDArray[np.float64]
    """(3, 3) eV, ``-dE/dε``."""
    atomic_energy: NDArray[np.float64]
    """(N,)."""
    positions: NDArray[np.float64]
    """(N, 3) Å, where LAMMPS has the atoms: perhaps in another periodic image."""
    atomic_virial: NDArray[np.float64] | None
    """(N, 3, 3) eV, ``sum_i (r_i - r_j) dU_i/dr_j`` of atom j, not symmetric; their sum is the virial.
    None unless it was asked for."""


@dataclass(frozen=True)
class CheckRow:
    """One comparison."""

    structure: str
    ranks: int
    quantity: str
    deviation: float
    """Relative to the largest value, and at least to 1 eV or 1 eV/Å."""
    allowed: float


def single_points(
    structures: Sequence[Atoms],
    *,
    model: str | os.PathLike[str],
    plugin: str | os.PathLike[str],
    species: Iterable[str],
    ranks: int = 1,
    options: str = "",
    newton: str = "on",
    atomic_virials: bool = False,
) -> list[SinglePoint]:
    """Energy, forces and virial of structures by ``run 0``, all in one LAMMPS process.

    Args:
        structures: in LAMMPS' axes, see :func:`~pimlip_zoo.deploy.lammps.data.in_lammps_axes`.
        model: the exported file.
        plugin: the built plugin.
        species: elements of the atom types.
        ranks: MPI processes.
        options: of ``pair_style pimlip``.
        newton: on or off.
        atomic_virials: also of single atoms, which takes four evaluations.

    Raises:
        InputError: with LAMMPS' error line when it stops.
    """
    elements = list(species)
    with tempfile.TemporaryDirectory(prefix="pimlip-lammps-") as scratch:
        folder = Path(scratch)
        text = ""
        for index, atoms in enumerate(structures):
            types = write_data(folder / f"structure.{index}.data", atoms, elements)
            text += _SCRIPT.format(
                index=index,
                units="metal",
                boundary=" ".join("p" if p else "f" for p in atoms.pbc),
                newton=newton,
                style="charge" if has_charges(atoms) else "atomic",
                plugin=lammps_word(Path(plugin).resolve()),
                options=f"{options}{'' if types.have_standard_masses else ' masses any'}",
                model=lammps_word(Path(model).resolve()),
                elements=" ".join(types.elements),
                stress="compute stress all centroid/stress/atom NULL virial" if atomic_virials else "",
                components=" c_stress[*]" if atomic_virials else "",
            )
        script = folder / "in.lammps"
        script.write_text(text)
        run_lammps(script, ranks=ranks, timeout=600)
        return [_read_point(folder, index) for index in range(len(structures))]


def _read_point(folder: Path, index: int) -> SinglePoint:
    rows = np.loadtxt(folder / f"rows.{index}.txt", skiprows=9, ndmin=2)
    energy, volume, *pressure = np.loadtxt(folder / f"global.{index}.txt")
    virial = np.array(pressure)[_VOIGT].reshape(3, 3) * volume / BAR
    stress = rows[:, 8:]
    atomic_virial = -stress[:, _CENTROID].reshape(-1, 3, 3) / BAR if stress.shape[1] else None
    return SinglePoint(float(energy), rows[:, 1:4], virial, rows[:, 4], rows[:, 5:8], atomic_virial)


def check_deployment(
    model: str | os.PathLike[str],
    *,
    plugin: str | os.PathLike[str],
    atoms: Atoms | None = None,
    ranks: Iterable[int] = (1, 2),
) -> list[CheckRow]:
    """Compare LAMMPS with the evaluation of the same file in Python.

    Args:
        model: the exported file.
        plugin: the built plugin.
        atoms: a structure; without one, an open cluster, a crystal, a skewed cell thinner than the cutoff.
        ranks: numbers of MPI processes to try.

    Returns:
        A row for each structure, number of ranks and quantity.
    """
    evaluate, metadata = load_exported(model)
    species = metadata["type_names"].split()
    limit = 10 * tolerance(getattr(torch, metadata["model_dtype"]))
    named = _structures(atoms, float(metadata["r_max"]), species)
    structures = [structure for _, structure in named]
    graphs = [_graph(structure, species, float(metadata["r_max"])) for structure in structures]
    expected = [from_edges(graph, evaluate(pair_style_inputs(graph))) for graph in graphs]
    rows = []
    for count in ranks:
        points = single_points(structures, model=model, plugin=plugin, species=species, ranks=count)
        for (name, _), reference, found in zip(named, expected, points, strict=True):
            values = {"energy": np.array([found.energy]), "forces": found.forces, "virial": found.virial}
            for quantity, value in values.items():
                right = reference[quantity].numpy().reshape(value.shape)
                deviation = np.abs(value - right).max() / max(1.0, np.abs(right).max())
                rows.append(CheckRow(name, count, quantity, float(deviation), limit))
    return rows


def _structures(atoms: Atoms | None, cutoff: float, species: list[str]) -> list[tuple[str, Atoms]]:
    from ase import Atoms as AseAtoms

    if atoms is not None:
        return [("structure", in_lammps_axes(atoms))]
    chosen = []
    for name, graph in check_structures(cutoff, len(species)):
        if len(graph.positions) < 5:
            continue
        cell = graph.cell[0].numpy()
        structure = AseAtoms(
            symbols=[species[s] for s in graph.species],
            positions=graph.positions.numpy(),
            cell=cell,
            pbc=bool(cell.any()),
        )
        chosen.append((name, in_lammps_axes(structure)))
    return chosen


def _graph(atoms: Atoms, species: list[str], cutoff: float) -> AtomGraph:
    frame = Frame(
        numbers=np.asarray(atoms.numbers, dtype=np.int64),
        positions=np.array(atoms.positions),
        cell=np.array(atoms.cell),
        pbc=np.array(atoms.pbc, dtype=bool),
    )
    return frame_to_sample(frame, species, cutoff).graph
