"""The one structure that a simulation starts from."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from pimlip_zoo.datasets.readers.source import check_bounded
from pimlip_zoo.errors import InputError

if TYPE_CHECKING:
    from ase import Atoms

__all__ = ["read_structure"]

_INDEXED = re.compile(r"(?P<path>.+)@(?P<index>-?\d+)")


def read_structure(spec: str) -> Atoms:
    """A frame of any file that ASE reads, with its cell and velocities, or of a built-in set.

    Args:
        spec: ``FILE``, ``FILE@INDEX`` or ``builtin:NAME/SPLIT@INDEX``; the last frame without an index.

    Raises:
        InputError: when there is no such file, frame or set, or the file cannot be read.

    >>> len(read_structure("builtin:ethanol-gfn2/test_300K@0"))
    9
    """
    path, index = spec, -1
    match = _INDEXED.fullmatch(spec)
    if match is not None and not Path(spec).exists():
        path, index = match["path"], int(match["index"])
    return _builtin(path, index) if path.startswith("builtin:") else _from_file(path, index)


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
    try:
        atoms = ase.io.read(path, index=index, do_not_split_by_at_sign=True)
    except (IndexError, StopIteration) as error:
        if index == -1:
            raise InputError("there is no structure in it", file=path) from error
        raise InputError("there is no such frame", file=path, frame=index) from error
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:150]
        raise InputError(f"ASE cannot read it: {reason}", file=path) from error
    if isinstance(atoms, list):
        raise InputError("there is no structure in it", file=path)
    atoms.calc = None
    return atoms
