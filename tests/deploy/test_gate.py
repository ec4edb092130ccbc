"""The gate lets sound potentials pass, stops others, and finds holes where there are some."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.emt import EMT

from pimlip_zoo.deploy.gate import DimerScan, scan_dimer, stability_gate
from pimlip_zoo.errors import InputError


class Pairs(Calculator):
    """A pair potential given by energy and derivative."""

    implemented_properties = ("energy", "forces")

    def __init__(self, energy, derivative):
        super().__init__()
        self.energy, self.derivative = energy, derivative

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        count = len(self.atoms)
        vectors = self.atoms.get_all_distances(vector=True)
        upper = np.triu_indices(count, 1)
        lengths = np.linalg.norm(vectors[upper], axis=1)
        pulls = (self.derivative(lengths) / lengths)[:, None] * vectors[upper]
        forces = np.zeros((count, 3))
        np.add.at(forces, upper[0], pulls)
        np.add.at(forces, upper[1], -pulls)
        self.results = {"energy": float(self.energy(lengths).sum()), "forces": forces}


def morse(depth=4.0, width=2.0, rest=1.1):
    def energy(r):
        return depth * (1 - np.exp(-width * (r - rest))) ** 2

    def derivative(r):
        decay = np.exp(-width * (r - rest))
        return 2 * depth * width * (1 - decay) * decay

    return Pairs(energy, derivative)


def falling():
    return Pairs(lambda r: 3.0 * r, lambda r: np.full_like(r, 3.0))


def scan_of(energies):
    return DimerScan(("C", "C"), np.linspace(1.5, 0.6, len(energies)), np.array(energies, dtype=float))


def test_a_wall_that_rises_all_the_way_has_no_hole_and_its_height_is_told():
    scan = scan_of([0.5, 0.1, 0.0, 1.0, 5.0, 20.0])
    assert scan.hole is None
    assert scan.wall == 20.0


@pytest.mark.parametrize(
    ("energies", "place"),
    [
        ([0.5, 0.0, 1.0, 4.0, 3.0, -8.0], 3),  # over the rim and down
        ([5.0, 4.0, 3.0, 2.0, 1.0, 0.0], 0),  # never rises
        ([0.5, 0.0, 1.0, np.nan, 3.0, 4.0], 3),
    ],
)
def test_a_hole_is_found_where_it_begins(energies, place):
    scan = scan_of(energies)
    assert scan.hole == pytest.approx(scan.distances[place])


def test_noise_of_float32_is_no_hole():
    assert scan_of([0.1, 0.0, 0.0002, 0.0001, 3.0, 9.0]).hole is None


def test_scans_run_from_the_sum_of_covalent_radii_inwards():
    scan = scan_dimer(morse(), ("C", "H"), points=5)
    np.testing.assert_allclose(scan.distances, np.linspace(1.0, 0.4, 5) * (0.76 + 0.31))
    np.testing.assert_allclose(scan.energies, morse().energy(scan.distances))


def test_a_sound_potential_passes_and_the_structure_stays_where_it_was(tmp_path):
    atoms = bulk("Cu", "fcc", a=3.6, cubic=True)
    atoms.calc = EMT()
    before = atoms.get_positions()
    result = stability_gate(atoms, steps=60, timestep=2.0, out=tmp_path / "gate")
    assert result.passed
    assert result.sentences[0].startswith("dynamics: stable for 120 fs")
    assert [scan.symbols for scan in result.dimers] == [("Cu", "Cu")]
    np.testing.assert_array_equal(atoms.positions, before)
    assert (tmp_path / "gate" / "trajectory.extxyz").exists()


def test_a_potential_that_pulls_atoms_together_does_not_pass_and_names_each_pair():
    atoms = molecule("H2O")
    atoms.calc = falling()
    result = stability_gate(atoms, steps=500)
    assert not result.passed
    assert len(result.dimers) == 3
    assert [line.split(":")[0] for line in result.sentences] == ["dynamics", "H-H", "H-O", "O-O"]
    assert "ZBL" in result.sentences[1]


def test_the_dynamics_have_the_temperature_that_was_asked_for_on_average():
    harmonic = Atoms("C8", positions=np.random.default_rng(0).normal(size=(8, 3)) * 3)
    rest = harmonic.get_all_distances()[np.triu_indices(8, 1)]
    harmonic.calc = Pairs(lambda r: 5 * (r - rest) ** 2, lambda r: 10 * (r - rest))
    result = stability_gate(harmonic, species=[], steps=3000, temperature=200)
    assert result.passed
    # Rotations keep the 2 T that vibrations share with their potential energy.
    assert result.dynamics.mean_temperature == pytest.approx(200, rel=0.3)


def test_more_elements_than_the_structure_has_can_be_scanned_and_none_is_no_structure():
    atoms = molecule("H2", calculator=morse())
    result = stability_gate(atoms, species=["H", "C", "O"], steps=1)
    assert len(result.dimers) == 6
    with pytest.raises(InputError, match="no atoms"):
        stability_gate(Atoms(calculator=EMT()))
