"""The one structure that a simulation starts from: of a file, a built-in set, or what ASE can build."""

from __future__ import annotations

import logging
import re
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pimlip_zoo.datasets.open_cell import HINT, MEANS, fills_open_cell, say_unstated
from pimlip_zoo.datasets.readers.labels import kind_of
from pimlip_zoo.datasets.readers.lammps_types import (
    check_elements_named,
    format_of,
    say_guessed,
    told_to_ase,
)
from pimlip_zoo.datasets.readers.source import check_bounded
from pimlip_zoo.errors import InputError, did_you_mean, reason_of

if TYPE_CHECKING:
    from ase import Atoms

log = logging.getLogger("pimlip_zoo")

_INDEXED = re.compile(r"(?P<path>.+)@(?P<index>-?\d+)")


def read_structure(spec: str) -> Atoms:
    """A frame of any file that ASE reads, with its cell and velocities, or of a built-in set, or one that ASE builds.

    Args:
        spec: ``FILE``, ``FILE@INDEX`` or ``builtin:NAME/SPLIT@INDEX``; the last frame without an index.
            ``bulk:SYMBOL``, ``bulk:SYMBOL:LATTICE`` or ``bulk:SYMBOL:LATTICE:A`` is the primitive cell of a crystal, as
            of ``ase.build.bulk``; ``molecule:NAME`` one of ``ase.build.molecule``.

    Raises:
        InputError: when there is no such file, frame or set, or the file cannot be read.

    >>> len(read_structure("builtin:ethanol-gfn2/test_300K@0"))
    9
    """
    if not Path(spec).exists():
        if spec.startswith("bulk:"):
            return _bulk(spec)
        if spec.startswith("molecule:"):
            return _molecule(spec)
    path, index = file_and_index(spec)
    return _builtin(path, index) if path.startswith("builtin:") else _from_file(path, index)


def file_and_index(spec: str) -> tuple[str, int]:
    """What ``FILE@INDEX`` names; -1 without an index.

    >>> file_and_index("md.extxyz@3")
    ('md.extxyz', 3)
    """
    match = _INDEXED.fullmatch(spec)
    return (spec, -1) if match is None or Path(spec).exists() else (match["path"], int(match["index"]))


def holds_several(spec: str) -> bool:
    """Whether a file without an index has more structures than the last one, which is read.

    Args:
        spec: as of :func:`read_structure`.
    """
    import ase.io

    if not Path(spec).is_file():
        return False
    # Readers of formats of one structure say in their own ways that there is no second.
    with suppress(Exception):
        told = told_to_ase(spec)
        return not isinstance(ase.io.read(spec, index=1, do_not_split_by_at_sign=True, **told), list)
    return False


def _bulk(spec: str) -> Atoms:
    from ase.build import bulk

    symbol, *rest = spec.split(":")[1:]
    try:
        crystal = bulk(symbol, rest[0] if rest else None, a=float(rest[1]) if len(rest) > 1 else None)
    except Exception as error:
        raise InputError(
            f"ASE cannot build it: {reason_of(error)}",
            file=spec,
            hint="write bulk:Cu, bulk:NaCl:rocksalt:5.64",
        ) from error
    if len(rest) > 2:
        raise InputError("has too many parts", file=spec, hint="write bulk:Cu, bulk:NaCl:rocksalt:5.64")
    return crystal


def _molecule(spec: str) -> Atoms:
    from ase.build import molecule
    from ase.collections import g2

    name = spec.removeprefix("molecule:")
    if name not in g2.names:
        raise InputError("ASE has no such molecule", file=spec, hint=did_you_mean(name, g2.names))
    return molecule(name)


def _builtin(name: str, index: int) -> Atoms:
    from pimlip_zoo.datasets.builtin import load_builtin
    from pimlip_zoo.datasets.frame import frame_to_atoms

    frames = load_builtin(name)
    if not -len(frames) <= index < len(frames):
        raise InputError(f"there is no such frame, there are {len(frames)}", file=name, frame=index)
    atoms = frame_to_atoms(frames[index])
    atoms.calc = None
    return atoms


def _from_file(path: str, index: int) -> Atoms:
    import ase.io

    check_bounded(path)
    check_elements_named(path)
    told = told_to_ase(path)
    say_guessed(path, told)
    try:
        atoms = ase.io.read(path, index=index, do_not_split_by_at_sign=True, **told)
    except (IndexError, StopIteration) as error:
        if index == -1:
            raise InputError("there is no structure in it", file=path) from error
        raise InputError("there is no such frame", file=path, frame=index) from error
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:150]
        raise InputError(f"ASE cannot read it: {reason}", file=path) from error
    if isinstance(atoms, list):
        raise InputError("there is no structure in it", file=path)
    for key, numbers in (("positions", atoms.positions), ("cell", atoms.cell.array)):
        if not np.isfinite(numbers).all():
            raise InputError(
                "are not all finite" if key == "positions" else "is not finite", file=path, key=key
            )
    atoms.calc = None
    _say_other_names(atoms, path)
    unstated = say_unstated(path, format_of(path))
    if not unstated and fills_open_cell(atoms.positions, atoms.cell.array, atoms.pbc):
        log.warning("%s has %s (%s)", path, MEANS.replace("their", "its"), HINT)
    return atoms


_READ_AS = {
    "masses": ("masses", "elements have their usual masses"),
    "velocities": ("momenta", "there are no velocities"),
    "constraints": ("move_mask", "no atom is held"),
}
"""What a simulation looks at: the column that ASE reads, and what follows where that is not there."""


def _say_other_names(atoms: Atoms, path: str) -> None:
    """Once for each kind of column that says by another name what a simulation would look at."""
    for kind, (name, so) in _READ_AS.items():
        there = bool(atoms.constraints) if kind == "constraints" else atoms.has(name)
        found = [key for key in atoms.arrays if kind_of(key) == kind]
        if found and not there:
            log.warning(
                "%s: the column %s is not read, %s (call it %s, as ASE does)", path, found[0], so, name
            )
