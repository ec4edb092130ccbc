"""A user's own file, and nothing else: a mixture of molecules, a metal with stress, a liquid."""

import json

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from ase.neighborlist import natural_cutoffs, neighbor_list

KCAL = 0.0433641
SHORT = ["--max-steps", 2]  # all that is not the data's: the tests have to end


def labelled(atoms, energy, forces, stress=None):
    results = {"energy": energy, "forces": forces} | ({} if stress is None else {"stress": stress})
    atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms


def mixture(rng, factor=1.0):
    """Molecules whose bonds are springs of 30 eV/Å²; energies that atoms add to."""
    frames = []
    for name in ("CH3OH", "C2H6", "H2CO", "CH3CHO", "C2H4", "HCOOH") * 4:
        atoms = molecule(name)
        i, j, rest = neighbor_list("ijd", atoms, natural_cutoffs(atoms, mult=1.2))
        atoms.positions += rng.normal(0, 0.06, atoms.positions.shape)
        vectors = atoms.positions[j] - atoms.positions[i]
        length = np.linalg.norm(vectors, axis=1)
        forces = np.zeros((len(atoms), 3))
        np.add.at(forces, i, 30.0 * (length - rest)[:, None] * vectors / length[:, None])
        energy = 7.5 * float(np.sum((length - rest) ** 2)) - 30.0 * float(np.sum(atoms.numbers))
        frames.append(labelled(atoms, energy, factor * forces))
    return frames


def metal(rng, factor=1.0):
    """Copper, strained and displaced, with stress."""
    frames = []
    for _ in range(20):
        atoms = bulk("Cu", cubic=True) * (2, 2, 1)
        strain = 0.02 * rng.normal(size=(3, 3))
        atoms.set_cell(atoms.cell @ (np.eye(3) + strain + strain.T), scale_atoms=True)
        atoms.positions += rng.normal(0, 0.08, atoms.positions.shape)
        atoms.calc = EMT()
        stress = atoms.get_stress()
        frames.append(labelled(atoms, atoms.get_potential_energy(), factor * atoms.get_forces(), stress))
    return frames


def liquid(rng, factor=1.0):
    """Dense argon, each structure from scratch."""
    grid = np.stack(np.meshgrid(*[np.arange(3)] * 3), axis=-1).reshape(-1, 3) * 3.7
    frames = []
    for _ in range(20):
        atoms = Atoms("Ar27", grid + rng.normal(0, 0.25, grid.shape), cell=[11.1] * 3, pbc=True)
        atoms.calc = LennardJones(sigma=3.4, epsilon=0.0104, rc=5.5, smooth=True)
        frames.append(labelled(atoms, atoms.get_potential_energy(), factor * atoms.get_forces()))
    return frames


KINDS = {
    mixture: ("batches of 10", "4,000 steps", "training on energy, forces;"),
    metal: ("batches of 10", "4,000 steps", "training on energy, forces, stress;"),
    liquid: ("batches of 7", "Å for neighbours 3.3 Å apart", "training on energy, forces;"),
}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_file_alone_is_enough_to_train_on(cli, tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    write("data.extxyz", kind(np.random.default_rng(0)))
    done = cli("train", "--data", "data.extxyz", *SHORT)
    assert done.code == 0, done
    said = " ".join(done.out.split())
    assert "checked: nothing speaks against training" in said
    batches, length, labels = KINDS[kind]
    assert batches in said
    assert labels in said
    assert length in said or length.endswith("steps")  # which --max-steps has replaced
    assert "report: runs/nequip-1/report.html" in said
    errors = json.loads((tmp_path / "runs/nequip-1/test.json").read_text())
    assert set(errors) == {"training", "validation"}
    assert errors["validation"]["forces"]["rmse"] > 0
    assert (errors["validation"]["stress"] is not None) == (kind is metal)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_the_same_file_with_forces_in_another_unit_is_refused(refused, tmp_path, kind):
    write(tmp_path / "data.extxyz", kind(np.random.default_rng(0), 1 / KCAL))
    refused("train", "--data", "data.extxyz", *SHORT, says=["data.extxyz", "kcal/mol/Å", "--no-check"])
