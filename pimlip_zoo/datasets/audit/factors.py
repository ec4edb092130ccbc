"""What a factor between two quantities means: the units that it points to."""

from __future__ import annotations

import math
from collections.abc import Mapping

_ENERGY = {"Hartree": 27.211386, "Rydberg": 13.605693, "kcal/mol": 0.0433641, "kJ/mol": 0.0103643, "eV": 1.0}
_LENGTH = {"Bohr": 0.529177, "Å": 1.0, "nm": 10.0}
_USED = (
    *("Hartree/Bohr", "Hartree/Å", "Rydberg/Bohr", "eV/Bohr"),
    *("kcal/mol/Å", "kcal/mol/Bohr", "kJ/mol/Å", "kJ/mol/nm"),
)
FORCE_FACTORS: Mapping[str, float] = {
    unit: _ENERGY[unit.rpartition("/")[0]] / _LENGTH[unit.rpartition("/")[2]] for unit in _USED
}
"""eV/Å, by unit."""
ENERGY_FACTORS: Mapping[str, float] = {name: value for name, value in _ENERGY.items() if name != "eV"}
"""eV, by unit."""
STRESS_FACTORS: Mapping[str, float] = {"GPa": 1 / 160.21766, "kbar": 1 / 1602.1766}
"""eV/Å³, by unit."""


def looks_like(factor: float, units: Mapping[str, float], *, within: float = 1.5) -> list[str]:
    """The units of such a size, the nearest first.

    Args:
        factor: how much a quantity has to be multiplied with to be what it should be.
        units: sizes by name.
        within: at most so many times larger or smaller.

    >>> looks_like(0.044, FORCE_FACTORS, within=1.2)
    ['kcal/mol/Å']
    """
    size = abs(factor)
    if size == 0.0 or not math.isfinite(size):
        return []
    far = {name: abs(math.log(size / unit)) for name, unit in units.items()}
    return sorted((name for name in far if far[name] < math.log(within)), key=lambda name: far[name])
