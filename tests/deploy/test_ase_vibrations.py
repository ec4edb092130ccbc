"""Hessians by differences and by differentiation agree, and give the modes that physics demands."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms, FixCartesian, Hookean

from pimlip_zoo.datasets.frame import Frame
from pimlip_zoo.datasets.neighbours import frame_to_sample
from pimlip_zoo.deploy.ase import PimlipCalculator
from pimlip_zoo.deploy.relax import relax
from pimlip_zoo.deploy.vibrations import exact_hessian, hessian, phonons, vibrations
from pimlip_zoo.errors import InputError
from pimlip_zoo.graph import collate
from pimlip_zoo.models.nequip import NequIP, NequIPConfig
from pimlip_zoo.models.potential import Potential

SPECIES = ("H", "C", "O")


def small_potential(force_head="conservative", cutoff=4.0):
    torch.manual_seed(0)
    config = NequIPConfig(
        num_layers=2, l_max=1, channels=4, cutoff=cutoff, avg_num_neighbors=8.0, force_head=force_head
    )
    return Potential(NequIP(config, SPECIES)).set_dtype(torch.float64).eval()


def sample_of(atoms, cutoff=4.0):
    frame = Frame(
        numbers=atoms.numbers.astype(np.int64),
        positions=atoms.positions,
        cell=np.array(atoms.cell),
        pbc=atoms.pbc,
    )
    return frame_to_sample(frame, SPECIES, cutoff)


@pytest.mark.parametrize(
    "atoms",
    [
        molecule("CH3OH"),
        Atoms(
            "COH",
            positions=[[0, 0, 0], [1.2, 0.1, 0], [0.4, 1.1, 0.3]],
            cell=[[3, 0, 0], [1.5, 3.2, 0], [0.3, 0.8, 3.1]],
            pbc=True,
        ),
    ],
    ids=["molecule", "skewed cell thinner than the cutoff"],
)
def test_differentiating_twice_and_differences_of_forces_give_one_hessian(atoms):
    potential = small_potential()
    exact = exact_hessian(potential, sample_of(atoms).graph)
    atoms.calc = PimlipCalculator(potential)
    positions = atoms.get_positions()
    np.testing.assert_allclose(hessian(atoms), exact, atol=1e-12)
    numerical = hessian(atoms, step=1e-4)
    np.testing.assert_array_equal(atoms.positions, positions)
    assert np.abs(exact).max() > 1e-3
    np.testing.assert_allclose(exact, numerical, atol=1e-6 * np.abs(exact).max())
    # Translation costs nothing.
    np.testing.assert_allclose(exact.reshape(-1, len(atoms), 3).sum(axis=1), 0, atol=1e-10)


def test_an_atom_alone_has_no_second_derivative():
    np.testing.assert_array_equal(
        exact_hessian(small_potential(), sample_of(Atoms("C")).graph), np.zeros((3, 3))
    )


def test_several_structures_and_direct_forces_have_no_hessian():
    sample = sample_of(molecule("H2O"))
    with pytest.raises(InputError, match="2 structures"):
        exact_hessian(small_potential(), collate([sample, sample]).graph)
    with pytest.raises(InputError, match="direct forces"):
        exact_hessian(small_potential("direct"), sample.graph)


def test_a_molecule_at_its_minimum_vibrates_and_has_six_free_motions():
    atoms = molecule("H2O", calculator=EMT())
    relax(atoms, fmax=1e-5, steps=2000, optimiser="BFGSLineSearch")
    energies = vibrations(atoms, step=0.002).get_energies()
    assert np.abs(energies[:6]).max() < 2e-3
    assert (energies[6:].real > 0.01).all()


def test_phonons_of_copper_are_stable_and_acoustic_at_gamma():
    atoms = bulk("Cu", "fcc", a=3.59)
    atoms.calc = EMT()
    positions = atoms.get_positions()
    result = phonons(atoms, supercell=(3, 3, 3))
    np.testing.assert_array_equal(atoms.positions, positions)
    at_gamma = result.band_structure([[0, 0, 0]])
    np.testing.assert_allclose(at_gamma, 0, atol=1e-4)
    at_x = result.band_structure([[0.5, 0, 0.5]])
    assert (at_x > 0.01).all()
    assert (at_x < 0.05).all()  # measured: 21 and 30 meV
    np.testing.assert_allclose(result.band_structure([[0.5, 0.5, 0]]), at_x, atol=1e-4)


def test_what_has_no_phonons_or_step_is_refused():
    with pytest.raises(InputError, match="periodic in all"):
        phonons(molecule("H2O", calculator=EMT()))
    with pytest.raises(InputError, match="step"):
        hessian(molecule("H2O", calculator=EMT()), step=0.0)


def test_atoms_that_are_held_do_not_vibrate(tmp_path):
    from ase.vibrations import Vibrations

    atoms = bulk("Cu", cubic=True, a=3.6).repeat((2, 1, 1))
    atoms.positions += np.random.default_rng(0).normal(0, 0.05, atoms.positions.shape)
    atoms.calc = EMT()
    atoms.set_constraint(FixAtoms([0, 1, 2, 4, 7]))
    ours = vibrations(atoms, step=0.005)
    theirs = Vibrations(atoms, name=str(tmp_path / "vib"), delta=0.005)
    theirs.run()
    assert len(ours.get_energies()) == 9
    assert ours.get_energies() == pytest.approx(theirs.get_energies(), abs=1e-6)
    assert np.abs(ours.get_modes(all_atoms=True)[:, [0, 1, 2, 4, 7]]).max() == 0.0
    assert hessian(atoms).shape == (24, 24)  # of the energy, which knows no constraint


def test_modes_and_phonons_under_other_constraints_are_refused():
    atoms = bulk("Cu", cubic=True, a=3.6)
    atoms.calc = EMT()
    for constraint, reason in (
        (FixCartesian([0], mask=(True, False, False)), "single coordinates are held"),
        (Hookean(0, 1, rt=2.0, k=1.0), "Hookean cannot be kept"),
        (FixAtoms(range(4)), "no atom is free"),
    ):
        atoms.set_constraint(constraint)
        with pytest.raises(InputError, match=reason):
            vibrations(atoms)
    with pytest.raises(InputError, match="phonons are of atoms that all move"):
        phonons(atoms)
