"""Labels that are orders of magnitude away from what a potential says are said to be."""

import numpy as np

from pimlip_zoo.report.remarks import remarks_on

RNG = np.random.default_rng(0)
FORCES, ERRORS = RNG.normal(size=300), 0.1 * RNG.normal(size=300)
ENERGIES = -5.0 + 0.1 * RNG.normal(size=40)


def test_labels_that_fit_are_not_remarked_on():
    assert (
        remarks_on({"forces": (FORCES, FORCES + ERRORS), "energy_per_atom": (ENERGIES, ENERGIES + 0.3)}) == []
    )
    assert remarks_on({}) == []
    assert remarks_on({"forces": (np.zeros(9), np.zeros(9))}) == []


def test_labels_in_another_unit_are_named():
    (said,) = remarks_on({"forces": (23.06 * FORCES, FORCES + ERRORS)})
    assert "22.9 times" in said
    assert "kcal/mol/Å" in said
    (said,) = remarks_on({"forces": (1200.0 * FORCES, FORCES)})
    assert "typically 1,200 times" in said
    (said,) = remarks_on({"stress": (160.2 * FORCES, FORCES + ERRORS)})
    assert "GPa" in said
    (said,) = remarks_on({"energy_per_atom": (23.06 * ENERGIES, ENERGIES)})
    assert "kcal/mol" in said


def test_labels_with_another_sign_or_zero_are_said():
    (said,) = remarks_on({"forces": (-FORCES, FORCES + ERRORS)})
    assert "sign" in said
    (said,) = remarks_on({"energy_per_atom": (ENERGIES - 1029.0, ENERGIES)})
    assert "eV/atom away" in said


def test_forces_without_relation_are_not_given_a_unit():
    (said,) = remarks_on({"forces": (23.06 * FORCES, RNG.normal(size=300))})
    assert "kcal" not in said
