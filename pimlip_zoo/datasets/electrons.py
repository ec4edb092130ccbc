"""Charge and spin of a structure: how many electrons there are, and how many of them are unpaired.

A frame states them in its ``info``, as whole numbers: ``charge`` in elementary charges, ``multiplicity`` as 2S + 1.
What is not stated is neutral, with the lowest multiplicity that the number of electrons allows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pimlip_zoo.datasets.frame import Frame
from pimlip_zoo.errors import InputError

if TYPE_CHECKING:
    from ase import Atoms

CHARGE, MULTIPLICITY = "charge", "multiplicity"
ELECTRON_KEYS = {
    "charge": CHARGE,
    "total_charge": CHARGE,
    "multiplicity": MULTIPLICITY,
    "mult": MULTIPLICITY,
    "spin_multiplicity": MULTIPLICITY,
    "total_spin": MULTIPLICITY,
}
"""What files call them. ``spin`` counts as the multiplicity where a charge stands beside it, as in OMol25."""
_NEARLY_WHOLE = 1e-2


class Electrons(NamedTuple):
    """Charge and spin of one structure."""

    charge: int = 0
    """Elementary charges."""
    multiplicity: int = 1
    """2S + 1."""

    def __str__(self) -> str:
        charge = f"{self.charge:+d}" if self.charge else "0"
        return f"charge {charge}, multiplicity {self.multiplicity}"


def lowest_multiplicity(numbers: NDArray[Any], charge: int) -> int:
    """1 for an even number of electrons, 2 for an odd one."""
    return 1 + (int(np.sum(numbers)) - charge) % 2


def electrons_of(numbers: NDArray[Any], info: Mapping[str, Any]) -> Electrons:
    """The charge and the multiplicity of a structure from what its ``info`` states.

    Args:
        numbers: (N,) atomic numbers.
        info: of a frame, or of ASE's atoms.

    Raises:
        InputError: for values that are no whole numbers, or that the number of electrons rules out.
    """
    charge, multiplicity = whole(info, CHARGE), whole(info, MULTIPLICITY)
    if charge is None and multiplicity is None:
        return Electrons(0, lowest_multiplicity(numbers, 0))
    charge = charge or 0
    lowest = lowest_multiplicity(numbers, charge)
    electrons = int(np.sum(numbers)) - charge
    if electrons < 0:
        raise InputError(
            f"the charge is {charge:+d}, and there are {int(np.sum(numbers))} electrons", key=CHARGE
        )
    if multiplicity is None:
        return Electrons(charge, lowest)
    if multiplicity < 1 or (multiplicity - lowest) % 2 or multiplicity - 1 > electrons:
        raise InputError(
            f"the multiplicity {multiplicity} is impossible with {electrons} electrons",
            key=MULTIPLICITY,
            hint=f"it is 2S + 1: {lowest}, {lowest + 2}, ...",
        )
    return Electrons(charge, multiplicity)


def stated_at_all(info: Mapping[str, Any]) -> bool:
    """Whether a charge or a multiplicity stands there."""
    return CHARGE in info or MULTIPLICITY in info


def unpaired_by_default(numbers: NDArray[np.int64], natoms: NDArray[np.int64]) -> NDArray[np.float64]:
    """(M, 2) charge 0, and one unpaired electron where the number of electrons is odd.

    Args:
        numbers: (N,) atomic numbers of M structures, one after the other.
        natoms: (M,) how many atoms each has.
    """
    rows = np.zeros((len(natoms), 2))
    some = natoms > 0
    rows[some, 1] = np.add.reduceat(numbers, (np.cumsum(natoms) - natoms)[some]) % 2 if some.any() else 0
    return rows


def stated(frame: Frame) -> dict[str, int]:
    """What a frame says of its electrons beyond neutral and lowest multiplicity, for its copies and for keys."""
    if not stated_at_all(frame.info):
        return {}
    electrons = electrons_of(frame.numbers, frame.info)
    lowest = lowest_multiplicity(frame.numbers, electrons.charge)
    found = {CHARGE: electrons.charge} if electrons.charge else {}
    return found if electrons.multiplicity == lowest else {**found, MULTIPLICITY: electrons.multiplicity}


def give_electrons(atoms: Atoms, electrons: Mapping[str, int]) -> None:
    """State charge and multiplicity where calculators look: initial charges and moments, and ``info``.

    Both stand at the first atom: what calculators take is the sum. ``spin`` is the multiplicity, as models that were
    trained on OMol25 read it.
    """
    if not electrons:
        return
    found = electrons_of(atoms.numbers, electrons)
    first = np.zeros(len(atoms))
    first[0] = 1.0
    atoms.set_initial_charges(first * found.charge)
    atoms.set_initial_magnetic_moments(first * (found.multiplicity - 1))
    atoms.info.update(charge=found.charge, multiplicity=found.multiplicity, spin=found.multiplicity)


def electrons_of_atoms(atoms: Atoms, given: Mapping[str, int] | None = None) -> Electrons:
    """Charge and multiplicity of ASE's atoms: from ``info``, else the sums of initial charges and moments.

    Args:
        atoms: the structure.
        given: what counts more than what the structure states.

    Raises:
        InputError: for values that are no whole numbers, or that the number of electrons rules out.
    """
    info: dict[str, Any] = {}
    for key, value in atoms.info.items():
        if isinstance(key, str) and key.lower() in ELECTRON_KEYS:
            info.setdefault(ELECTRON_KEYS[key.lower()], value)
    if "spin" in atoms.info and CHARGE in info:
        info.setdefault(MULTIPLICITY, atoms.info["spin"])
    for key, array, sign in ((CHARGE, "initial_charges", 0), (MULTIPLICITY, "initial_magmoms", 1)):
        total = nearly_whole(atoms.arrays.get(array)) if key not in info and array in atoms.arrays else None
        if total:
            info[key] = abs(total) + 1 if sign else total
    return electrons_of(atoms.numbers, {**info, **(given or {})})


def nearly_whole(values: Any) -> int | None:
    """The sum of atoms' values where that is a whole number, else None."""
    if values is None or np.ndim(values) != 1:
        return None
    total = float(np.sum(values))
    return round(total) if math.isfinite(total) and abs(total - round(total)) < _NEARLY_WHOLE else None


def whole(info: Mapping[str, Any], key: str) -> int | None:
    """A value as a whole number; None where there is none.

    Raises:
        InputError: for anything else.
    """
    value = info.get(key)
    if value is None:
        return None
    try:
        number = float(np.asarray(value).reshape(()))
    except (TypeError, ValueError) as error:
        raise InputError(f"{value!r} is no whole number", key=key) from error
    if not number.is_integer():
        raise InputError(f"{value!r} is no whole number", key=key, hint="give the total of the structure")
    return int(number)
