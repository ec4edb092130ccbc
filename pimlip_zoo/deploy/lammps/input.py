"""Writes what a LAMMPS run needs: the structure in LAMMPS' axes, and a working input script."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from pimlip_zoo.errors import InputError

if TYPE_CHECKING:
    from ase import Atoms
    from numpy.typing import NDArray

__all__ = ["MDSettings", "in_lammps_axes", "input_script", "write_data", "write_run"]

_MARGIN = 6.0  # Å of empty space beyond the atoms in open directions


@dataclass(frozen=True, kw_only=True)
class MDSettings:
    """A molecular dynamics run, in LAMMPS' ``metal`` units: Å, ps, K, bar."""

    ensemble: Literal["nve", "nvt", "npt"] = "nvt"
    temperature: float = 300.0
    """K."""
    pressure: float = 0.0
    """bar, for npt."""
    timestep: float | None = None
    """ps; by default 0.0005 with hydrogen and 0.001 without."""
    steps: int = 1000
    every: int = 100
    """Steps between lines of the log and frames of the trajectory."""
    seed: int = 1
    chunk: int = 0
    """Atoms that are evaluated at once, to bound the memory; 0: all."""

    def __post_init__(self) -> None:
        if self.ensemble not in ("nve", "nvt", "npt"):
            raise InputError(
                f"there is no ensemble {self.ensemble!r}", key="ensemble", mend="nve, nvt or npt"
            )
        for key, low in (("temperature", 0.0), ("steps", 0), ("every", 1), ("chunk", 0), ("seed", 1)):
            if not getattr(self, key) >= low:
                raise InputError(f"{key} is {getattr(self, key)}", key=key, mend=f"give a number >= {low:g}")
        if self.timestep is not None and not self.timestep > 0:
            raise InputError(f"timestep is {self.timestep}", key="timestep", mend="give a time > 0 in ps")


def in_lammps_axes(atoms: Atoms) -> Atoms:
    """The same structure with the first lattice vector along x, the second in the xy plane.

    Directions that are not periodic get a lattice vector with empty space around the atoms, orthogonal to the
    periodic ones. Of a left-handed cell the first two vectors are exchanged.

    Raises:
        InputError: when there are no atoms, or periodic lattice vectors are coplanar.
    """
    from ase.calculators.lammps import Prism

    if len(atoms) == 0:
        raise InputError("there are no atoms", key="structure")
    result = atoms.copy()
    periodic = np.array(result.pbc, dtype=bool)
    cell = np.array(result.cell)
    if np.linalg.matrix_rank(cell[periodic], tol=1e-8) < periodic.sum():
        raise InputError("the periodic lattice vectors are coplanar, or one is missing", key="cell")
    _close_open_directions(cell, periodic, result.positions)
    if np.linalg.det(cell) < 0:
        cell, periodic = cell[[1, 0, 2]], periodic[[1, 0, 2]]
    result.set_cell(cell)
    result.set_pbc(periodic)
    prism = Prism(cell, pbc=periodic)
    positions, velocities = result.get_positions(), result.get_velocities()
    result.set_cell(prism.cell)
    result.set_positions(prism.vector_to_lammps(positions))
    if result.has("momenta"):
        result.set_velocities(prism.vector_to_lammps(velocities))
    return result


def _close_open_directions(
    cell: NDArray[np.float64], periodic: NDArray[np.bool_], positions: NDArray[np.float64]
) -> None:
    """Fill the rows of open directions, and move the atoms into the middle of them; both in place."""
    kept = cell[periodic]
    directions = np.linalg.svd(kept)[2][len(kept) :] if len(kept) else np.eye(3)
    for axis, direction in zip(np.flatnonzero(~periodic), directions, strict=True):
        along = positions @ direction
        cell[axis] = direction * (np.ptp(along) + 2 * _MARGIN)
        positions += direction * (_MARGIN - along.min())


def write_data(path: str | os.PathLike[str], atoms: Atoms, species: Sequence[str]) -> None:
    """A LAMMPS data file (``atom_style atomic``, ``units metal``), atom types in the order of ``species``.

    Args:
        path: the file.
        atoms: from :func:`in_lammps_axes`.
        species: chemical symbols of the atom types.

    Raises:
        InputError: for an element that is not among them.
    """
    from ase.io.lammpsdata import write_lammps_data

    unknown = sorted(set(atoms.get_chemical_symbols()) - set(species))
    if unknown:
        raise InputError(
            f"the model does not know {', '.join(unknown)}",
            key="species",
            mend="train on data that have them",
        )
    with Path(path).open("w") as file:
        write_lammps_data(
            file,
            atoms,
            specorder=list(species),
            masses=True,
            velocities=bool(atoms.has("momenta")),
            units="metal",
            atom_style="atomic",
        )


def input_script(
    *,
    species: Sequence[str],
    periodic: Sequence[bool],
    settings: MDSettings,
    plugin: str,
    model: str,
    data: str,
    has_velocities: bool = False,
) -> str:
    """The text of an input script for molecular dynamics.

    Args:
        species: elements of the atom types, in the order of ``pair_coeff``.
        periodic: of the three directions.
        settings: the run.
        plugin: the shared library of ``pair_style pimlip``.
        model: the exported file.
        data: the data file.
        has_velocities: the data file has velocities, so none are drawn.
    """
    elements = " ".join(species)
    timestep = settings.timestep or (0.0005 if "H" in species else 0.001)
    temperature, pressure = f"{settings.temperature:g}", f"{settings.pressure:g}"
    thermostat = f"temp {temperature} {temperature} {100 * timestep:g}"
    if settings.ensemble == "npt" and not any(periodic):
        raise InputError("npt needs a periodic direction", key="ensemble", mend="use nvt")
    target = f"{pressure} {pressure} {1000 * timestep:g}"
    axes = "".join(f" {axis} {target}" for axis, free in zip("xyz", periodic, strict=True) if free)
    barostat = f" iso {target}" if all(periodic) else axes
    integrators = {"nve": "nve", "nvt": f"nvt {thermostat}", "npt": f"npt {thermostat}{barostat}"}
    velocities = (
        "# velocities come with the structure"
        if has_velocities
        else f"velocity        all create {temperature} {settings.seed} dist gaussian mom yes rot yes"
    )
    return f"""# Molecular dynamics with a potential of pimlip-zoo.   lmp -in in.lammps
units           metal
atom_style      atomic
boundary        {" ".join("p" if p else "s" for p in periodic)}
newton          on

plugin          load {plugin}
read_data       {data}

pair_style      pimlip{f" chunk {settings.chunk}" if settings.chunk else ""}
pair_coeff      * * {model} {elements}

neighbor        1.0 bin
neigh_modify    every 1 delay 0 check yes
timestep        {timestep:g}

{velocities}
fix             integrate all {integrators[settings.ensemble]}

thermo_style    custom step time temp pe ke etotal press vol
thermo          {settings.every}
thermo_modify   flush yes
dump            trajectory all custom {settings.every} trajectory.dump id element x y z vx vy vz fx fy fz
dump_modify     trajectory element {elements} sort id
restart         {max(settings.every * 10, 1)} run.restart.a run.restart.b

run             {settings.steps}
write_restart   final.restart
"""


def write_run(
    folder: str | os.PathLike[str],
    atoms: Atoms,
    *,
    model: str | os.PathLike[str],
    plugin: str | os.PathLike[str],
    species: Sequence[str],
    settings: MDSettings | None = None,
) -> Path:
    """Write ``in.lammps`` and ``structure.data`` into a folder.

    Only the elements of the structure become atom types.

    Args:
        folder: made where there is none.
        atoms: the structure.
        model: the exported file; named relative to the folder where it lies in it.
        plugin: from :func:`~pimlip_zoo.deploy.lammps.build.build_plugin`.
        species: what the model knows.
        settings: the run.

    Returns:
        The input script.
    """
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    placed = in_lammps_axes(atoms)
    present = set(placed.get_chemical_symbols())
    used = [symbol for symbol in species if symbol in present]
    write_data(target / "structure.data", placed, used)
    text = input_script(
        species=used,
        periodic=[bool(p) for p in placed.pbc],
        settings=settings or MDSettings(),
        plugin=_relative(plugin, target),
        model=_relative(model, target),
        data="structure.data",
        has_velocities=bool(atoms.has("momenta")),
    )
    script = target / "in.lammps"
    scratch = script.with_name(f".{script.name}.tmp")
    scratch.write_text(text)
    scratch.replace(script)
    return script


def _relative(path: str | os.PathLike[str], folder: Path) -> str:
    resolved = Path(path).resolve()
    inside = resolved.is_relative_to(folder.resolve())
    return resolved.relative_to(folder.resolve()).as_posix() if inside else str(resolved)
