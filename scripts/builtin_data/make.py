"""Make a built-in set again: what ``pimlip_zoo/datasets/data`` holds is what this wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ase.data import atomic_numbers
from ase.io import write
from cual import make_cual
from ethanol import make_ethanol
from packing import write_packed

from pimlip_zoo.datasets.builtin_format import PackedSet
from pimlip_zoo.datasets.frame import Frame, frame_to_atoms
from pimlip_zoo.errors import InputError, did_you_mean
from pimlip_zoo.files import replacing, writing

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

MAKERS: dict[str, Callable[..., PackedSet]] = {"ethanol-gfn2": make_ethanol, "cual-emt": make_cual}


def make_builtin(
    name: str,
    out: Path,
    *,
    seed: int | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> list[Path]:
    """Make a built-in set again and write it.

    With the same seed ``cual-emt`` is the same up to rounding, while ``ethanol-gfn2`` is another sample of the same
    ensembles: molecular dynamics amplifies the last bit of a force, which not even one machine always gives in the
    same way, to another trajectory within some picoseconds.

    Args:
        name: one of :data:`MAKERS`.
        out: a file ``*.npz`` gets the set in the package's own compact form; anything else is taken as a folder for
            one extended XYZ file per split, ``isolated_atoms.extxyz`` and ``provenance.json``.
        seed: of all random numbers; by default the one of the set that comes with the package.
        progress: called with the name of the split, frames done and frames in total.

    Returns:
        The files that were written.

    Raises:
        InputError: for an unknown name, a missing program (with the command that installs it), or a place that cannot
            be written.
    """
    if name not in MAKERS:
        raise InputError(f"no built-in data set is called {name!r}", hint=did_you_mean(name, MAKERS))
    if out.suffix != ".npz" and out.exists() and not out.is_dir():
        raise InputError("is a file, not a folder", file=out, hint="name a folder, or a file ending in .npz")
    options: dict[str, Any] = {"progress": progress} | ({} if seed is None else {"seed": seed})
    data = MAKERS[name](**options)
    with writing(out):
        if out.suffix == ".npz":
            write_packed(out, data)
            return [out]
        return write_folder(out, data)


def write_folder(folder: Path, data: PackedSet) -> list[Path]:
    """One file for each split, one for the isolated atoms, one for where they come from."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [write_extxyz(folder / f"{split}.extxyz", frames) for split, frames in data.splits.items()]
    paths.append(write_extxyz(folder / "isolated_atoms.extxyz", isolated_atoms(data.atom_energies)))
    with replacing(folder / "provenance.json") as temporary:
        text = json.dumps(dict(data.provenance), indent=2, ensure_ascii=False) + "\n"
        temporary.write_text(text, encoding="utf-8")
    return [*paths, folder / "provenance.json"]


def isolated_atoms(energies: Mapping[str, float]) -> list[Frame]:
    """Single atoms with their energies, as readers of data sets expect them."""
    return [
        Frame(
            numbers=np.array([atomic_numbers[symbol]]),
            positions=np.zeros((1, 3)),
            energy=energy,
            forces=np.zeros((1, 3)),
            info={"config_type": "IsolatedAtom"},
        )
        for symbol, energy in energies.items()
    ]


def write_extxyz(path: Path, frames: Sequence[Frame]) -> Path:
    """ASE writes 8 decimals, enough for positions on a grid of 1e-6 Å; energies get all their digits."""
    with replacing(path) as temporary:
        write(temporary, [frame_to_atoms(frame) for frame in frames], format="extxyz")
    return path
