"""What was computed in folders is found again, whatever digits, charge and spin a structure has."""

import json
from dataclasses import replace

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.io import write

from pimlip_zoo.datasets.frame import Frame
from pimlip_zoo.datasets.lmdb import write_store
from pimlip_zoo.labelling.cluster import read_folders, write_folders
from pimlip_zoo.labelling.journal import Journal, journal_path
from pimlip_zoo.labelling.structures import as_atoms, load_structures, same_but_rounded, structure_text


def digits(atoms, **info):
    """A frame with all the digits of a double."""
    rng = np.random.default_rng(len(atoms))
    cell = atoms.cell.array + (rng.normal(0, 0.01, (3, 3)) if atoms.pbc.all() else 0.0)
    positions = atoms.positions + rng.normal(0, 0.01, atoms.positions.shape)
    return Frame(atoms.numbers, positions, cell, atoms.pbc.copy(), info=info)


def magnet(moments):
    atoms = bulk("Fe", cubic=True)
    atoms.set_initial_magnetic_moments(None)  # ASE's own, of which there is one for each atom
    atoms.set_initial_magnetic_moments(moments)
    return atoms


@pytest.fixture(scope="module")
def structures(tmp_path_factory):
    """From a store: molecules, ions, a radical, a crystal; from extended XYZ: moments and charges of atoms."""
    folder = tmp_path_factory.mktemp("structures")
    slab = Atoms("Cu2", [[0, 0, 0], [0, 0, 2.5]], cell=np.diag([2.5, 2.5, 0]), pbc=[True, True, False])
    frames = [
        digits(molecule("H2O")),
        digits(molecule("H2O"), charge=1, multiplicity=2),
        digits(Atoms("Na", [[0, 0, 0]]), charge=1),
        digits(molecule("CH3"), multiplicity=2),
        digits(bulk("Cu", cubic=True)),
        digits(slab),
        digits(bulk("NaCl", "rocksalt", a=5.6), charge=1, multiplicity=2),
    ]
    write_store(folder / "pool.lmdb", frames)
    apart = molecule("H2O")
    apart.set_initial_charges([-0.812345678, 0.406172839, 0.406172839])
    write(folder / "moments.extxyz", [magnet([2.123456789012, -2.123456789012]), apart])
    write(folder / "canted.extxyz", magnet([[2.0, 0.1, 0.0], [-2.0, 0.1, 0.0]]))
    names = ["pool.lmdb", "moments.extxyz", "canted.extxyz"]
    return load_structures(",".join(str(folder / name) for name in names))


def computed(place, energy):
    """The journal that `label structure.extxyz -o result.extxyz` leaves there."""
    (written,) = load_structures(str(place / "structure.extxyz"))
    manifest = json.loads((place.parent / "manifest.json").read_text())
    about = {"name": "emt", "version": manifest["calculator_version"], "level": manifest["level"]}
    result = {"energy": energy, "forces": np.zeros((len(written.frame.numbers), 3)).tolist()}
    Journal(journal_path(place / "result.extxyz"), about).add(written.key(), {"result": result})


def test_a_structure_that_is_written_with_every_digit_reads_back_with_the_same_key(structures, tmp_path):
    assert len({structure.key() for structure in structures}) == len(structures) == 10
    for structure in structures:
        (tmp_path / "structure.extxyz").write_text(structure_text(structure))
        (again,) = load_structures(str(tmp_path / "structure.extxyz"))
        assert again.key() == structure.key(), structure


@pytest.mark.parametrize("rounded", [False, True])
def test_every_structure_of_the_folders_is_collected(structures, tmp_path, rounded):
    write_folders(structures, tmp_path / "jobs", "emt")
    for number, structure in enumerate(structures):
        place = tmp_path / "jobs" / f"{number:05d}"
        if rounded:  # as earlier versions wrote it
            write(place / "structure.extxyz", as_atoms(structure), format="extxyz")
        computed(place, -1.0 - number)
    labelling = read_folders(structures, tmp_path / "jobs", tmp_path / "labels.extxyz", "emt")
    assert (labelling.labelled, labelling.failures) == (10, ())


@pytest.mark.parametrize("change", ["positions", "cell", "charge", "multiplicity", "moments", "elements"])
def test_what_was_computed_for_another_structure_is_not_taken(structures, tmp_path, change):
    crystal, iron = structures[4], structures[7]
    other = {
        "positions": replace(crystal, frame=replace(crystal.frame, positions=crystal.frame.positions + 1e-5)),
        "cell": replace(crystal, frame=replace(crystal.frame, cell=crystal.frame.cell * 1.00001)),
        "charge": replace(crystal, charge=1),
        "multiplicity": replace(crystal, multiplicity=3),
        "moments": replace(iron, moments=-iron.moments),
        "elements": replace(crystal, frame=replace(crystal.frame, numbers=crystal.frame.numbers - 1)),
    }[change]
    one = iron if change == "moments" else crystal
    assert not same_but_rounded(one, other)
    write_folders([one], tmp_path / "jobs", "emt")
    (tmp_path / "jobs" / "00000" / "structure.extxyz").write_text(structure_text(other))
    computed(tmp_path / "jobs" / "00000", -1.0)
    labelling = read_folders([one], tmp_path / "jobs", tmp_path / "labels.extxyz", "emt")
    assert [failure.reason for failure in labelling.failures] == ["not computed yet"]
