"""Relaxation ends in minima, with the cell and pressure that were asked for."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, fcc111, molecule
from ase.calculators.emt import EMT
from ase.io import read

from pimlip_zoo.deploy.relax import OPTIMISERS, relax
from pimlip_zoo.errors import InputError


def strained(symbol="Cu"):
    atoms = bulk(symbol, "fcc", a=3.7, cubic=True)
    atoms.set_cell(np.array(atoms.cell) @ [[1.02, 0.03, 0], [0, 0.99, 0], [0, 0, 1]], scale_atoms=True)
    atoms.rattle(0.05, seed=0)
    atoms.calc = EMT()
    return atoms


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_a_molecule_ends_without_forces(optimiser):
    atoms = molecule("CH3CH2OH", calculator=EMT())
    start = atoms.get_potential_energy()
    result = relax(atoms, fmax=0.01, optimiser=optimiser, steps=2000)
    assert result.converged
    assert result.largest_force < 0.01
    assert result.energy < start
    assert result.largest_stress is None
    assert result.energy == pytest.approx(EMT().get_potential_energy(atoms), abs=1e-10)


def test_cell_and_atoms_relax_to_the_crystal():
    atoms = strained()
    result = relax(atoms, cell=True, fmax=0.002)
    assert result.converged
    assert result.largest_stress < 0.002 * 4 / atoms.get_volume()
    lengths = np.linalg.norm(atoms.cell, axis=1)
    np.testing.assert_allclose(atoms.cell.angles(), 90, atol=0.1)
    np.testing.assert_allclose(lengths, 3.59, atol=0.01)


def test_without_the_cell_it_stays():
    atoms = strained()
    cell = np.array(atoms.cell)
    relax(atoms, fmax=0.01)
    np.testing.assert_array_equal(atoms.cell, cell)


def test_under_pressure_the_stress_is_that_pressure():
    atoms = strained()
    assert relax(atoms, cell=True, pressure=10.0, fmax=0.002).converged
    pressure = -atoms.get_stress()[:3] / units.GPa
    np.testing.assert_allclose(pressure, 10.0, atol=0.05)
    assert np.abs(atoms.get_stress()[3:]).max() / units.GPa < 0.05


def test_a_kept_shape_changes_only_its_volume():
    atoms = strained()
    before = np.array(atoms.cell)
    result = relax(atoms, cell=True, keep_shape=True, fmax=0.005)
    assert result.converged
    ratio = np.linalg.det(atoms.cell) ** (1 / 3) / np.linalg.det(before) ** (1 / 3)
    assert ratio < 0.99
    np.testing.assert_allclose(np.array(atoms.cell), before * ratio, atol=1e-6)
    assert result.largest_stress < 0.005 * 4 / atoms.get_volume()


def test_the_vacuum_of_a_slab_is_left_alone_while_its_plane_relaxes():
    atoms = fcc111("Cu", (1, 1, 3), a=3.7, vacuum=6.0)
    atoms.pbc = (True, True, False)
    atoms.calc = EMT()
    height, side = atoms.cell[2].copy(), np.linalg.norm(atoms.cell[0])
    result = relax(atoms, cell=True, fmax=0.005)
    assert result.converged
    np.testing.assert_allclose(atoms.cell[2], height, atol=1e-12)
    assert np.linalg.norm(atoms.cell[0]) < side - 0.05


def test_steps_that_run_out_are_said_and_progress_is_told(tmp_path):
    calls = []
    result = relax(
        strained(),
        fmax=1e-6,
        steps=2,
        trajectory=tmp_path / "t.traj",
        progress=lambda step, force: calls.append((step, force)),
    )
    assert not result.converged
    assert result.steps == 2
    assert [step for step, _ in calls] == [0, 1, 2]
    assert calls[-1][1] == pytest.approx(result.largest_force)
    assert len(read(tmp_path / "t.traj", ":")) == 3


def test_what_cannot_be_relaxed_is_refused():
    with pytest.raises(InputError, match="did you mean BFGS"):
        relax(strained(), optimiser="BFGSS")
    with pytest.raises(InputError, match="no cell"):
        relax(molecule("H2O", calculator=EMT()), cell=True)
    with pytest.raises(InputError, match="no atoms"):
        relax(Atoms(calculator=EMT()))
    slab = fcc111("Cu", (1, 1, 2), vacuum=5.0)
    slab.calc = EMT()
    with pytest.raises(InputError, match="keep its shape"):
        relax(slab, cell=True, keep_shape=True)
