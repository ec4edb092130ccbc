"""Two-point extrapolation of energies to the limit of a complete basis set.

- Hartree-Fock: ``E_X = E + A exp(-alpha sqrt(X))``; S. Zhong, E. C. Barnes, G. A. Petersson, J. Chem. Phys. 129, 184116
  (2008); earlier, for larger basis sets, A. Karton, J. M. L. Martin, Theor. Chem. Acc. 115, 330 (2006),
- correlation: ``E_X = E + A X^(-beta)``; T. Helgaker, W. Klopper, H. Koch, J. Noga, J. Chem. Phys. 106, 9639 (1997),
  where beta is 3, as it is when X goes to infinity,

X the cardinal number of the basis set (2 for double zeta). The exponents alpha and beta were fitted for each family and
pair by F. Neese, E. F. Valeev, J. Chem. Theory Comput. 7, 33 (2011).
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

from pimlip_zoo.errors import InputError

_FAMILIES = {
    "cc-pv{}z": ("d", "t", "q"),
    "aug-cc-pv{}z": ("d", "t", "q"),
    "def2-{}": ("svp", "tzvpp", "qzvpp"),
}
_EXPONENTS = {
    ("cc-pv{}z", 2): (4.42, 2.46),
    ("cc-pv{}z", 3): (5.46, 3.05),
    ("aug-cc-pv{}z", 2): (4.30, 2.51),
    ("aug-cc-pv{}z", 3): (5.79, 3.05),
    ("def2-{}", 2): (10.39, 2.40),
    ("def2-{}", 3): (7.88, 2.97),
}
"""By family and the smaller cardinal number: alpha, beta."""


class Extrapolation(NamedTuple):
    """A pair of basis sets, and the exponents that belong to it."""

    small: int
    """Cardinal number of the smaller basis."""
    alpha: float
    beta: float

    def hartree_fock(self, small: float, large: float) -> float:
        """The limit of two Hartree-Fock energies."""
        a, b = (
            math.exp(-self.alpha * math.sqrt(self.small)),
            math.exp(-self.alpha * math.sqrt(self.small + 1)),
        )
        return (small * b - large * a) / (b - a)

    def correlation(self, small: float, large: float) -> float:
        """The limit of two correlation energies."""
        a, b = self.small**self.beta, (self.small + 1) ** self.beta
        return (b * large - a * small) / (b - a)


def extrapolation(small: str, large: str) -> Extrapolation:
    """The exponents for a pair of basis sets.

    Raises:
        InputError: for a pair whose exponents are not known.

    >>> extrapolation("cc-pvtz", "cc-pvqz").beta
    3.05
    """
    for family, letters in _FAMILIES.items():
        names = [family.format(letter) for letter in letters]
        if small in names and large in names and names.index(large) == names.index(small) + 1:
            cardinal = names.index(small) + 2
            return Extrapolation(cardinal, *_EXPONENTS[family, cardinal])
    known = [
        f"{family.format(letters[k])}:{family.format(letters[k + 1])}"
        for family, letters in _FAMILIES.items()
        for k in range(2)
    ]
    raise InputError(
        f"no exponents are known for {small} and {large}", key="basis", hint=f"known: {', '.join(known)}"
    )


def is_basis_name(text: str) -> bool:
    """Whether a text can be the name of a basis set; which there are is the business of who computes."""
    return re.fullmatch(r"[\w.+*()-]+", text) is not None
