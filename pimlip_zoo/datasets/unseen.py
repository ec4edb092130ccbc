"""What is said where structures state a charge or spin that a model does not see: once, in one line."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from pimlip_zoo.datasets.electrons import (
    CHARGE,
    ELECTRON_KEYS,
    Electrons,
    electrons_of_atoms,
    lowest_multiplicity,
    stated,
)
from pimlip_zoo.datasets.frames import as_frames
from pimlip_zoo.errors import InputError

if TYPE_CHECKING:
    from ase import Atoms

    from pimlip_zoo.datasets.frame import Frame

log = logging.getLogger("pimlip_zoo")

LOOKED_AT = 256
"""Structures of a store whose charge is looked at: each is opened for it."""
_ARRAYS = ("initial_charges", "initial_magmoms")


class UnseenElectrons:
    """Looks at what structures state, and says once that the model does not see it.

    Args:
        fixed: ``charge`` and ``multiplicity`` that the model was made for, which a structure may state.
    """

    def __init__(self, fixed: Mapping[str, int] = MappingProxyType({})) -> None:
        self.fixed = None if not fixed else Electrons(**fixed)
        self.said = False

    def look(self, atoms: Atoms) -> None:
        """Say what this structure states, unless something was said already."""
        if self.said:
            return
        found = _stated_by(atoms, self.fixed)
        if found is None:
            return
        self.said = True
        if self.fixed is not None:
            log.warning("the structure states %s, and the model was exported for %s alone", found, self.fixed)
            return
        log.warning(
            "the structure states %s; the model does not see it, and gives every charge and spin the same energy and "
            "forces (model.embed_charge of a training shows them to it)",
            found,
        )


def _stated_by(atoms: Atoms, fixed: Electrons | None) -> str | None:
    """What it states beyond neutral, of lowest multiplicity, or beyond what is fixed."""
    info = {key: value for key, value in atoms.info.items() if _names_electrons(key) and value is not None}
    if not info and not any(name in atoms.arrays for name in _ARRAYS):
        return None
    looked = atoms
    if "initial_magmoms" in atoms.arrays and atoms.pbc.any():  # of a magnet, a guess: no spin of the whole
        looked = atoms.copy()
        del looked.arrays["initial_magmoms"]
    try:
        found = electrons_of_atoms(looked)
    except InputError:  # what cannot be is no less unseen
        return ", ".join(f"{key} {_short(value)}" for key, value in info.items())
    usual = Electrons(0, lowest_multiplicity(atoms.numbers, 0))
    return None if found in (usual, fixed) else str(found)


def _names_electrons(key: Any) -> bool:
    return isinstance(key, str) and key.lower() in ELECTRON_KEYS


def _short(value: Any) -> str:
    return repr(np.asarray(value).tolist())[:40]


def unseen_in_frames(frames: Sequence[Frame]) -> str | None:
    """One line where structures state charges or spins, for a model that does not see them; None where none does.

    Args:
        frames: of a large store some are looked at, evenly spread.
    """
    frames = as_frames(frames)
    if frames.uncharged():
        return None
    positions, step = frames.sample(LOOKED_AT)
    found = [electrons for position in positions if (electrons := stated(frames[position]))]
    if not found:
        return None
    of = f"{len(found)} of {len(positions)} structures" + (" that were looked at" if step > 1 else "")
    charges = sorted({electrons.get(CHARGE, 0) for electrons in found})
    said = ", ".join(f"{charge:+d}" if charge else "0" for charge in charges[:8])
    more = ", ..." if len(charges) > 8 else ""
    return (
        f"{of} state a charge or an unusual multiplicity (charges {said}{more}); the model does not see it, and gives "
        "every charge and spin the same energy and forces (model.embed_charge of a training shows them to it)"
    )
