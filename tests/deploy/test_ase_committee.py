"""A committee's mean is a potential, its spread a sample's standard deviation."""

from __future__ import annotations

import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from ase.calculators.mixing import SumCalculator

from pimlip_zoo.deploy.committee import CommitteeCalculator
from pimlip_zoo.deploy.md import MDSettings, run_md
from pimlip_zoo.errors import InputError


def members():
    return [EMT(), LennardJones(sigma=2.3, epsilon=0.2, rc=5.0), LennardJones(sigma=2.2, epsilon=0.3, rc=5.0)]


def crystal():
    atoms = bulk("Cu", "fcc", a=3.6, cubic=True)
    atoms.rattle(0.1, seed=1)
    return atoms


def test_energy_forces_and_stress_are_the_means_and_the_spread_is_that_of_a_sample():
    atoms = crystal()
    atoms.calc = CommitteeCalculator(members())
    energies, forces, stresses = [], [], []
    for member in members():
        single = crystal()
        single.calc = member
        energies.append(single.get_potential_energy())
        forces.append(single.get_forces())
        stresses.append(single.get_stress())
    assert atoms.get_potential_energy() == pytest.approx(np.mean(energies), rel=1e-12)
    np.testing.assert_allclose(atoms.get_forces(), np.mean(forces, axis=0), atol=1e-12)
    np.testing.assert_allclose(atoms.get_stress(), np.mean(stresses, axis=0), atol=1e-12)
    results = atoms.calc.results
    assert results["energy_std"] == pytest.approx(np.std(energies, ddof=1), rel=1e-12)
    expected = [
        np.sqrt(sum(np.sum((f[i] - np.mean(forces, axis=0)[i]) ** 2) for f in forces) / 2) for i in range(4)
    ]
    np.testing.assert_allclose(results["forces_std"], expected, rtol=1e-10)
    np.testing.assert_allclose(results["stress_std"], np.std(stresses, axis=0, ddof=1), rtol=1e-10)
    np.testing.assert_allclose(results["member_energies"], energies, rtol=1e-12)
    assert atoms.calc.get_property("forces_std", atoms).shape == (4,)


def test_equal_members_have_no_spread_which_is_said_once(caplog):
    atoms = crystal()
    atoms.calc = CommitteeCalculator([EMT(), EMT()])
    assert atoms.get_potential_energy() == EMT().get_potential_energy(crystal())
    atoms.rattle(0.01)
    atoms.get_potential_energy()
    assert caplog.text.count("members 1 and 2 of the committee agree") == 1
    assert atoms.calc.results["energy_std"] == 0
    assert not atoms.calc.results["forces_std"].any()


def test_of_different_members_nothing_is_said(caplog):
    atoms = crystal()
    atoms.calc = CommitteeCalculator(members())
    atoms.get_potential_energy()
    assert not caplog.text


def test_the_mean_forces_are_the_derivative_of_the_mean_energy():
    atoms = crystal()
    atoms.calc = CommitteeCalculator(members())
    forces = atoms.get_forces()
    energies = []
    for sign in (1, -1):
        moved = crystal()
        moved.positions[1, 2] += sign * 1e-5
        energies.append(atoms.calc.get_potential_energy(moved))
    assert -(energies[0] - energies[1]) / 2e-5 == pytest.approx(forces[1, 2], abs=1e-6)


def test_moved_atoms_are_computed_anew():
    atoms = crystal()
    atoms.calc = CommitteeCalculator(members())
    before = atoms.get_forces()
    atoms.rattle(0.1, seed=2)
    assert np.abs(atoms.get_forces() - before).max() > 1e-3


def test_a_committee_drives_dynamics(tmp_path):
    atoms = crystal()
    atoms.calc = CommitteeCalculator([EMT(), EMT()])
    assert run_md(atoms, MDSettings(ensemble="nve", steps=20), tmp_path).stable


def test_members_without_stress_make_a_committee_without_stress():
    class NoStress(SumCalculator):
        def __init__(self):
            super().__init__([EMT()])
            self.implemented_properties = ["energy", "forces"]

    committee = CommitteeCalculator([EMT(), NoStress()])
    assert "stress" not in committee.implemented_properties
    assert "stress" in CommitteeCalculator(members()).implemented_properties
    atoms = molecule("CO")
    atoms.calc = committee
    assert np.isfinite(atoms.get_forces()).all()


def test_one_member_is_no_committee():
    with pytest.raises(InputError, match="no spread"):
        CommitteeCalculator([EMT()])
