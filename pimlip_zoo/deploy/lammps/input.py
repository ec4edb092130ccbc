"""Writes what a LAMMPS run needs: the structure in LAMMPS' axes, and a working input script."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from pimlip_zoo.deploy.constraints import held_coordinates
from pimlip_zoo.deploy.lammps.data import (
    atom_types,
    data_text,
    has_charges,
    in_lammps_axes,
    left_out,
    write_data,
)
from pimlip_zoo.deploy.lammps.quote import lammps_word
from pimlip_zoo.errors import InputError
from pimlip_zoo.files import content_hash, read_text, regular_file, replacing, writing
from pimlip_zoo.locks import making

if TYPE_CHECKING:
    from ase import Atoms
    from numpy.typing import NDArray

__all__ = ["MDSettings", "check_own", "in_lammps_axes", "input_script", "write_data", "write_run"]

_IDS_PER_LINE = 100
_MARK = "# as written by pimlip-zoo: "
"""Begins the last line of a script, in which the hashes of the lines above and of the structure follow."""


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
    every: int | None = None
    """Steps between lines of the log and frames of the trajectory; None: 100, a tenth of runs shorter than 1,000."""
    seed: int = 1
    chunk: int = 0
    """Atoms that are evaluated at once, to bound the memory; 0: all."""

    def __post_init__(self) -> None:
        if self.ensemble not in ("nve", "nvt", "npt"):
            raise InputError(
                f"there is no ensemble {self.ensemble!r}", key="ensemble", hint="nve, nvt or npt"
            )
        bounds: tuple[tuple[str, float, float], ...] = (
            *(("temperature", 0.0, math.inf), ("pressure", -math.inf, math.inf)),
            *(("steps", 0, 2**63), ("every", 1, 2**31), ("chunk", 0, 2**31), ("seed", 1, 2**31)),
        )
        for key, low, beyond in bounds:
            value = getattr(self, key)
            if value is not None and value < low:
                raise InputError(f"{value} is too low", key=key, hint=f"give {low:g} or more")
            if value is not None and not abs(value) < beyond:  # NaN is neither
                raise InputError(f"{value} is not possible for LAMMPS", key=key)
        if self.ensemble != "nve" and self.temperature == 0:
            raise InputError("LAMMPS has no bath of 0 K", key="temperature", hint="give more, or take nve")
        if self.timestep is not None and not 0 < self.timestep < math.inf:
            raise InputError(f"timestep is {self.timestep}", key="timestep", hint="give a time > 0 in ps")

    @property
    def interval(self) -> int:
        """``every``, or what follows from the steps: a short run shows something of itself, too."""
        return max(1, min(100, self.steps // 10)) if self.every is None else self.every


def input_script(
    *,
    species: Sequence[str],
    periodic: Sequence[bool],
    settings: MDSettings,
    plugin: str,
    model: str,
    data: str,
    has_velocities: bool = False,
    held: NDArray[np.bool_] | None = None,
    charges: bool = False,
    any_mass: bool = False,
    remark: str = "",
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
        held: (N, 3), the coordinates that do not move.
        charges: the data file has charges.
        any_mass: its masses are not those of the elements.
        remark: goes into the head of the script.

    Raises:
        InputError: for npt without a periodic direction or with atoms that are held.
    """
    elements = " ".join(species)
    timestep = settings.timestep or (0.0005 if "H" in species else 0.001)
    temperature, pressure = f"{settings.temperature:g}", f"{settings.pressure:g}"
    thermostat = f"temp {temperature} {temperature} {100 * timestep:g}"
    if settings.ensemble == "npt" and not any(periodic):
        raise InputError("npt needs a periodic direction", key="ensemble", hint="use nvt")
    if settings.ensemble == "npt" and held is not None and held.any():
        raise InputError(
            "NPT cannot hold atoms fixed", key="structure", hint="use nvt, or remove the constraints"
        )
    if held is not None and held.all():
        raise InputError("all atoms are held fixed", key="structure", hint="remove the constraints")
    target = f"{pressure} {pressure} {1000 * timestep:g}"
    axes = "".join(f" {axis} {target}" for axis, free in zip("xyz", periodic, strict=True) if free)
    barostat = f" iso {target}" if all(periodic) else axes
    integrators = {"nve": "nve", "nvt": f"nvt {thermostat}", "npt": f"npt {thermostat}{barostat}"}
    fixed = np.zeros((1, 3), dtype=bool) if held is None else held
    group = "mobile" if fixed.all(axis=1).any() else "all"
    conserving = "no" if fixed.any() else "yes"
    momenta = f"mom {conserving} rot {conserving}"
    if fixed.any():
        momenta += " temp moving"
    velocities = (
        f"# velocities come with the structure; {_kept(settings)}"
        if has_velocities
        else f"velocity        {group} create {temperature} {settings.seed} dist gaussian {momenta}"
    )
    groups, still, holds = _holding(fixed, thermostatted=settings.ensemble == "nvt")
    if still and not has_velocities:
        still += f"velocity        {group} scale {temperature} temp moving\n"
    columns = f"id element {'q ' if charges else ''}x y z vx vy vz fx fy fz"
    options = f" chunk {settings.chunk}" if settings.chunk else ""
    options += " masses any" if any_mass else ""
    return f"""# Molecular dynamics with a potential of pimlip-zoo.   lmp -in in.lammps
{remark}units           metal
atom_style      {"charge" if charges else "atomic"}
boundary        {" ".join("p" if p else "m" for p in periodic)}
newton          on

plugin          load {lammps_word(plugin)}
read_data       {lammps_word(data)}

pair_style      pimlip{options}
pair_coeff      * * {lammps_word(model)} {elements}

neighbor        1.0 bin
neigh_modify    every 1 delay 0 check yes
timestep        {timestep:g}

{groups}{velocities}
{still}fix             integrate {group} {integrators[settings.ensemble]}
{holds}
thermo_style    custom step time temp pe ke etotal press vol
thermo          {settings.interval}
thermo_modify   flush yes{" temp moving" if fixed.any() else ""}
dump            trajectory all custom {settings.interval} trajectory.dump {columns}
dump_modify     trajectory element {elements} sort id
restart         {settings.interval * 10} run.restart.a run.restart.b

run             {settings.steps}
write_restart   final.restart
"""


def _kept(settings: MDSettings) -> str:
    """What the temperature is for where velocities are given."""
    if settings.ensemble == "nve":
        return "no temperature is set"
    return f"the thermostat takes them to {settings.temperature:g} K"


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

    Only the elements of the structure become atom types, isotopes of one element several. What its constraints
    hold is held; masses, charges and velocities are kept.

    Args:
        folder: made where there is none.
        atoms: the structure.
        model: the exported file; named relative to the folder where it lies in it.
        plugin: from :func:`~pimlip_zoo.deploy.lammps.build.build_plugin`.
        species: what the model knows.
        settings: the run.

    Returns:
        The input script.

    Raises:
        InputError: where a script or structure is there that somebody else wrote, or edited.
    """
    target = Path(folder)
    check_own(target)
    placed = in_lammps_axes(atoms)
    present = set(placed.get_chemical_symbols())
    types = atom_types(placed, [symbol for symbol in species if symbol in present])
    omitted = ", ".join(left_out(atoms))
    text = input_script(
        species=types.elements,
        periodic=[bool(p) for p in placed.pbc],
        settings=settings or MDSettings(),
        plugin=_relative(plugin, target),
        model=_relative(model, target),
        data="structure.data",
        has_velocities=bool(atoms.has("momenta")),
        held=held_coordinates(placed),
        charges=has_charges(placed),
        any_mass=not types.have_standard_masses,
        remark=f"# LAMMPS has no place for what else the structure has: {omitted}\n" if omitted else "",
    )
    structure, script = target / "structure.data", target / "in.lammps"
    # Both are whole before either takes its place: a script that goes with another structure is worse than none.
    with writing(target), making(target), replacing(script) as scratch, replacing(structure) as data:
        data.write_text(data_text(placed, list(dict.fromkeys(types.elements)))[0])
        scratch.write_text(f"{text.rstrip()}\n{_MARK}{_hash_of(text)} {content_hash(data)}\n")
    return script


def check_own(folder: Path) -> None:
    """Refuse a folder in which one of the two files that :func:`write_run` writes is not as it wrote it.

    Raises:
        InputError: naming the file that somebody else wrote, or edited.
    """
    script, structure = folder / "in.lammps", folder / "structure.data"
    lines, mark = [""], ""
    if script.exists():
        *lines, mark = read_text(script).rstrip("\n").split("\n")
        if not mark.startswith(_MARK) or _hash_of("\n".join(lines)) not in mark:
            raise _others(script)
    if structure.exists() and content_hash(regular_file(structure)) not in mark:
        raise _others(structure)


def _hash_of(text: str) -> str:
    return hashlib.sha256(text.rstrip().encode()).hexdigest()


def _others(path: Path) -> InputError:
    return InputError(
        "is there, and is not as this command wrote it",
        file=path,
        key="--out",
        hint="name another folder, or move it away",
    )


def _holding(held: NDArray[np.bool_], *, thermostatted: bool) -> tuple[str, str, str]:
    """Lines in front of the velocities, behind them, and behind the integrator, that hold coordinates."""
    if not held.any():
        return "", "", ""
    whole = held.all(axis=1)
    before, still, after = [], [], []
    for pattern in np.unique(held[held.any(axis=1)], axis=0):
        members = (held == pattern).all(axis=1)
        name = "held" if pattern.all() else "held_" + "".join(np.array(list("xyz"))[pattern])
        before += [f"group           {name} id {words}" for words in _id_ranges(members)]
        if pattern.all():
            continue  # nothing integrates these
        zeros = " ".join("0.0" if fixed else "NULL" for fixed in pattern)
        still.append(f"velocity        {name} set {zeros}")
        after.append(f"fix             {name} {name} setforce {zeros}")
    group = "mobile" if whole.any() else "all"
    if whole.any():
        before.append("group           mobile subtract all held")
    # The temperature is that of what moves: held coordinates are no degrees of freedom, and nothing conserves
    # the momentum of the others.
    before.append(f"compute         moving {group} temp")
    before.append(f"compute_modify  moving extra/dof {int(held[~whole].sum())}")
    if thermostatted:
        after.append("fix_modify      integrate temp moving")
    lines = ["".join(f"{line}\n" for line in part) for part in (before, still, after)]
    return lines[0], lines[1], lines[2]


def _id_ranges(members: NDArray[np.bool_]) -> Iterator[str]:
    """The ids of atoms, consecutive ones as FIRST:LAST, in lines of a bearable length."""
    ids = np.flatnonzero(members) + 1
    runs = np.split(ids, np.flatnonzero(np.diff(ids) > 1) + 1)
    words = [str(run[0]) if len(run) == 1 else f"{run[0]}:{run[-1]}" for run in runs]
    for start in range(0, len(words), _IDS_PER_LINE):
        yield " ".join(words[start : start + _IDS_PER_LINE])


def _relative(path: str | os.PathLike[str], folder: Path) -> str:
    resolved, start = Path(path).resolve(), folder.resolve()
    if resolved.is_relative_to(start):
        return resolved.relative_to(start).as_posix()
    # LAMMPS reads ASCII alone: a folder above both of them need not be named.
    return str(resolved) if str(resolved).isascii() else os.path.relpath(resolved, start)
