"""Two-point limits of a basis set from cc-pVTZ and cc-pVQZ, beside cc-pV5Z.

    python benchmarks/basis_limit.py

Needs PySCF; half a minute to some minutes. Prints the table of ``docs/guide/labelling.md``, in mEh.
"""

from __future__ import annotations

from ase.build import molecule
from ase.units import Hartree

from pimlip_zoo.labelling.basis_limit import Extrapolation, extrapolation
from pimlip_zoo.labelling.quantum import PySCFCalculator, parse_level

MOLECULES = ("H2O", "CH4", "CH3OH", "N2")
FIFTH = Extrapolation(4, 1.0, 3.0)
"""E = limit + A X^-3, for the correlation of quadruple and quintuple zeta."""


def energies(name, basis):
    """Hartree-Fock and MP2 correlation."""
    atoms = molecule(name)
    atoms.calc = PySCFCalculator(parse_level(f"mp2/{basis}"))
    atoms.get_potential_energy()
    parts = atoms.calc.results["parts"]
    return 1e3 * parts["scf"] / Hartree, 1e3 * parts["correlation"] / Hartree


def main():
    limit = extrapolation("cc-pvtz", "cc-pvqz")
    print(
        "| | HF: QZ - 5Z | HF: limit - 5Z | MP2: QZ - 5Z | MP2: limit - 5Z | MP2: limit - limit of QZ and 5Z |"
    )
    print("|---|---|---|---|---|---|")
    for name in MOLECULES:
        (t, t2), (q, q2), (v, v2) = (energies(name, f"cc-pv{letter}z") for letter in "tq5")
        mp2 = limit.correlation(t2, q2)
        cells = (q - v, limit.hartree_fock(t, q) - v, q2 - v2, mp2 - v2, mp2 - FIFTH.correlation(q2, v2))
        print(f"| {name} | " + " | ".join(f"{cell:+.2f}" for cell in cells) + " |", flush=True)


if __name__ == "__main__":
    main()
