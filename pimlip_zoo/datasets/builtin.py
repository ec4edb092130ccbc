"""The data sets that come with the package, and how to make them again.

``ethanol-gfn2`` is a molecule's dynamics with GFN2-xTB; ``cual-emt`` periodic copper and aluminium with
the effective-medium potential. Both are small, and meant for demonstrations, tests and method studies.
"""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pimlip_zoo.datasets.frame import Frame, frame_to_atoms
from pimlip_zoo.datasets.packed import PackedSet, read_packed, write_packed
from pimlip_zoo.errors import InputError, did_you_mean
from pimlip_zoo.files import replacing, writing

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = [
    "builtin_atom_energies",
    "builtin_names",
    "builtin_provenance",
    "builtin_splits",
    "load_builtin",
    "make_builtin",
]

_NAMES = ("ethanol-gfn2", "cual-emt")
_DEFAULT_SPLIT = "train"


def builtin_names() -> tuple[str, ...]:
    """The names of the sets, as in ``builtin:NAME``."""
    return _NAMES


def builtin_splits(name: str) -> dict[str, int]:
    """The splits of a set and how many frames each has.

    Raises:
        InputError: for an unknown name.
    """
    return {split: len(frames) for split, frames in _load(name).splits.items()}


def load_builtin(spec: str) -> list[Frame]:
    """The frames of a built-in set.

    Args:
        spec: ``NAME/SPLIT``, or ``NAME`` for its training split; a leading ``builtin:`` is allowed.

    Raises:
        InputError: for an unknown name or split, with the nearest known ones.

    >>> len(load_builtin("ethanol-gfn2/test_600K"))
    200
    """
    name, _, split = spec.removeprefix("builtin:").partition("/")
    splits = _load(name).splits
    split = split or _DEFAULT_SPLIT
    if split not in splits:
        raise InputError(
            f"the built-in set {name} has no split {split!r}",
            key=f"builtin:{name}/{split}",
            mend=did_you_mean(split, splits),
        )
    return list(splits[split])


def builtin_atom_energies(name: str) -> dict[str, float]:
    """Energies in eV of the isolated atoms at the level of theory of the labels, by chemical symbol.

    Raises:
        InputError: for an unknown name.
    """
    return dict(_load(name).atom_energies)


def builtin_provenance(name: str) -> dict[str, Any]:
    """How a set was made: level of theory, units, licence, program versions, seed, counts.

    Raises:
        InputError: for an unknown name.
    """
    return dict(_load(name).provenance)


def make_builtin(
    name: str,
    out: Path,
    *,
    seed: int | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> list[Path]:
    """Make a built-in set again and write it.

    With the same seed ``cual-emt`` is the same up to rounding, while ``ethanol-gfn2`` is another sample of the
    same ensembles: molecular dynamics amplifies the last bit of a force, which not even one machine always
    gives in the same way, to another trajectory within some picoseconds.

    Args:
        name: one of :func:`builtin_names`.
        out: a file ``*.npz`` gets the set in the package's own compact form; anything else is taken as a
            folder for one extended XYZ file per split, ``isolated_atoms.extxyz`` and ``provenance.json``.
        seed: of all random numbers; by default the one of the set that comes with the package.
        progress: called with the name of the split, frames done and frames in total.

    Returns:
        The files that were written.

    Raises:
        InputError: for an unknown name, a missing program (with the command that installs it), or a place
            that cannot be written.
    """
    _check_name(name)
    if out.suffix != ".npz" and out.exists() and not out.is_dir():
        raise InputError("is a file, not a folder", file=out, mend="name a folder, or a file ending in .npz")
    options: dict[str, Any] = {"progress": progress} | ({} if seed is None else {"seed": seed})
    if name == "ethanol-gfn2":
        from pimlip_zoo.datasets.make.ethanol import make_ethanol

        data = make_ethanol(**options)
    else:
        from pimlip_zoo.datasets.make.cual import make_cual

        data = make_cual(**options)
    if out.suffix == ".npz":
        write_packed(out, data)
        return [out]
    return _write_folder(out, data)


def _check_name(name: str) -> None:
    if name not in _NAMES:
        raise InputError(f"no built-in data set is called {name!r}", mend=did_you_mean(name, _NAMES))


def _load(name: str) -> PackedSet:
    _check_name(name)
    with (resources.files("pimlip_zoo.datasets") / "data" / f"{name}.npz").open("rb") as file:
        return read_packed(file)


def _write_folder(folder: Path, data: PackedSet) -> list[Path]:
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    paths = [_write_extxyz(folder / f"{split}.extxyz", frames) for split, frames in data.splits.items()]
    paths.append(_write_extxyz(folder / "isolated_atoms.extxyz", _isolated_atoms(data.atom_energies)))
    provenance = folder / "provenance.json"
    text = json.dumps(dict(data.provenance), indent=2, ensure_ascii=False) + "\n"
    with replacing(provenance) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return [*paths, provenance]


def _isolated_atoms(energies: Mapping[str, float]) -> list[Frame]:
    import numpy as np
    from ase.data import atomic_numbers

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


def _write_extxyz(path: Path, frames: Sequence[Frame]) -> Path:
    from ase.io import write

    # ASE writes 8 decimals, enough for positions on a grid of 1e-6 Å; energies get all their digits.
    with replacing(path) as temporary:
        write(temporary, [frame_to_atoms(f) for f in frames], format="extxyz")
    return path
