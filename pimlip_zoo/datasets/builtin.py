"""The data sets that come with the package; ``scripts/builtin_data`` makes them again.

``ethanol-gfn2`` is a molecule's dynamics with GFN2-xTB; ``cual-emt`` periodic copper and aluminium with
the effective-medium potential. ``methanol-cbs`` has energies of CCSD(T) at the limit of the basis set, no forces but
for a few structures to judge by; ``methanol-low`` its structures with GFN2-xTB. All are small, and meant for
demonstrations, tests and method studies.
"""

from __future__ import annotations

from importlib import resources
from typing import Any

from pimlip_zoo.datasets.builtin_format import PackedSet, read_packed
from pimlip_zoo.datasets.frame import Frame
from pimlip_zoo.errors import InputError, did_you_mean

_NAMES = ("ethanol-gfn2", "cual-emt", "methanol-cbs", "methanol-low")
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
            hint=did_you_mean(split, splits),
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


def _check_name(name: str) -> None:
    if name not in _NAMES:
        raise InputError(f"no built-in data set is called {name!r}", hint=did_you_mean(name, _NAMES))


def _load(name: str) -> PackedSet:
    _check_name(name)
    with (resources.files("pimlip_zoo.datasets") / "data" / f"{name}.npz").open("rb") as file:
        return read_packed(file)
