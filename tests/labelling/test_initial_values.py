"""Initial charges and moments of atoms reach the reference calculation; what else is not handed on is said."""

import gzip
import logging
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms, FixCartesian
from ase.io import read, write
from typer.testing import CliRunner

from pimlip_zoo.cli import app
from pimlip_zoo.datasets.frame import Frame
from pimlip_zoo.datasets.lmdb import write_store
from pimlip_zoo.datasets.readers import load_frames
from pimlip_zoo.datasets.writing import write_frames
from pimlip_zoo.deploy.constraints import held_coordinates
from pimlip_zoo.errors import InputError
from pimlip_zoo.experiment import stages
from pimlip_zoo.labelling.label import label
from pimlip_zoo.labelling.structures import Structure, load_structures, structure_of
from pimlip_zoo.labelling.watch import UncertaintyWatch
from pimlip_zoo.rounds import run as rounds_run

MOMENTS = [[2.0, -2.0], [2.5, -2.5]]


def iron():
    crystals = []
    for moments in MOMENTS:
        atoms = bulk("Fe", cubic=True)
        atoms.set_initial_magnetic_moments(moments)
        crystals.append(atoms)
    return crystals


def written(folder, name):
    """Two antiferromagnets in a file of some format."""
    path = folder / name
    if name == "blank.extxyz":
        write(folder / "one.extxyz", iron()[0])
        write(folder / "two.extxyz", iron()[1])
        path.write_text((folder / "one.extxyz").read_text() + "\n" + (folder / "two.extxyz").read_text())
    elif path.suffix == ".gz":
        write(folder / "plain.extxyz", iron())
        path.write_bytes(gzip.compress((folder / "plain.extxyz").read_bytes()))
    elif path.suffix == ".db":
        from ase.db import connect

        with connect(path) as rows:
            for atoms in iron():
                rows.write(atoms)
    else:
        write(path, iron())
    return str(path)


@pytest.mark.parametrize("name", ["a.extxyz", "blank.extxyz", "a.extxyz.gz", "a.traj", "a.db", "a.json"])
def test_moments_of_atoms_are_read_from_every_format_that_has_them(tmp_path, name, caplog):
    structures = load_structures(written(tmp_path, name))
    assert [structure.moments.tolist() for structure in structures] == MOMENTS
    (last,) = load_structures(f"{tmp_path / name}@1:")
    assert last.moments.tolist() == MOMENTS[1]
    assert "not kept" not in caplog.text
    # what labels of earlier versions are found by
    frame = last.frame
    explicit = Structure(
        Frame(frame.numbers, frame.positions, frame.cell, frame.pbc), moments=np.array(MOMENTS[1])
    )
    assert last.key() == explicit.key()


def test_moments_that_are_all_zero_are_moments(tmp_path):
    atoms = molecule("H2O")
    atoms.set_initial_magnetic_moments(np.zeros(3))
    for name in ("a.extxyz", "a.traj"):
        write(tmp_path / name, atoms)
        (structure,) = load_structures(str(tmp_path / name))
        assert (structure.moments.tolist(), structure.multiplicity) == ([0, 0, 0], 1)


def test_moments_with_directions_and_charges_of_atoms_are_read(tmp_path):
    atoms = molecule("H2O")
    atoms.set_initial_magnetic_moments(np.arange(9.0).reshape(3, 3))
    atoms.set_initial_charges([-0.8, 0.4, 0.4])
    write(tmp_path / "a.extxyz", atoms)
    (structure,) = load_structures(str(tmp_path / "a.extxyz"))
    assert np.array_equal(structure.moments, np.arange(9.0).reshape(3, 3))
    assert structure.charges.tolist() == [-0.8, 0.4, 0.4]


def test_moments_that_are_no_numbers_are_refused():
    frame = Frame(np.array([8]), np.zeros((1, 3)), initial={"initial_magmoms": np.array([np.nan])})
    with pytest.raises(InputError, match="frame 3, initial_magmoms: are not all finite"):
        structure_of(frame, file="a.extxyz", index=3)


def test_select_carries_moments_and_says_what_it_does_not(tmp_path):
    atoms = iron()[0]
    atoms.set_constraint(FixAtoms([0]))
    atoms.set_tags([1, 2])
    atoms.positions[1] += 0.1
    write(tmp_path / "pool.extxyz", [*iron(), atoms])
    arguments = ["select", str(tmp_path / "pool.extxyz"), "-n", "1", "--acquisition", "random"]
    result = CliRunner().invoke(app, [*arguments, "-o", str(tmp_path / "chosen.extxyz")])
    assert result.exit_code == 0, result.output
    chosen = read(tmp_path / "chosen.extxyz")
    assert chosen.get_initial_magnetic_moments().tolist() in MOMENTS


def test_labels_keep_moments_and_what_is_not_kept_is_said_once(tmp_path, caplog):
    atoms = bulk("Cu", cubic=True)
    atoms.set_initial_magnetic_moments([0.5, -0.5, 0.5, -0.5])
    held = atoms.copy()
    held.set_constraint(FixAtoms([0]))
    held.set_tags([1, 2, 3, 4])
    held.positions[1] += 0.1
    write(tmp_path / "a.extxyz", [atoms, held, held])
    with caplog.at_level(logging.WARNING):
        structures = load_structures(str(tmp_path / "a.extxyz"))
    said = [record.getMessage() for record in caplog.records]
    assert said == [f"{tmp_path / 'a.extxyz'}: not kept: constraints, tags"]
    caplog.clear()
    frames = [structure.frame for structure in structures]
    write_frames(tmp_path / "b.extxyz", frames)
    again = load_structures(str(tmp_path / "b.extxyz"))
    assert [structure.moments.tolist() for structure in again] == [[0.5, -0.5, 0.5, -0.5]] * 3
    assert not caplog.records
    write_frames(tmp_path / "b.lmdb", frames)
    assert "place for it: magnetic moments of atoms" in caplog.records[0].getMessage()


def test_structures_that_failed_keep_their_moments(tmp_path):
    write(tmp_path / "a.extxyz", [bulk("Cu"), *iron()])  # EMT does not know iron
    result = label(load_structures(str(tmp_path / "a.extxyz")), tmp_path / "labels.extxyz", "emt")
    assert (result.labelled, len(result.failures)) == (1, 2)
    again = load_structures(str(result.failed_file))
    assert [structure.moments.tolist() for structure in again] == MOMENTS


def slab(path):
    atoms = Atoms("Cu2", [[0, 0, 0], [0, 0, 2.5]], cell=[5, 5, 9], pbc=True)
    atoms.set_constraint(FixAtoms([0]))
    write(path, atoms)
    return str(path)


def test_structures_where_sampling_starts_say_that_their_atoms_come_loose(tmp_path, caplog, monkeypatch):
    start = slab(tmp_path / "slab.extxyz")
    sample = SimpleNamespace(
        pool=None,
        start=start,
        strain=None,
        temperatures=[300.0],
        calculator="emt",
        structures=1,
        timestep=1.0,
        stride=1,
    )
    monkeypatch.setattr(rounds_run, "labelled_pool", lambda starts, *others: list(starts))
    (tmp_path / "sampling").mkdir()
    rounds_run._sampled(SimpleNamespace(sample=sample, seed=0, out=tmp_path), 1, tmp_path)
    said = f"{start}: not kept: constraints; every atom moves where structures are sampled"
    assert said in [record.getMessage() for record in caplog.records]
    caplog.clear()

    monkeypatch.setattr(stages, "labelled_pool", lambda *arguments: [])
    weak = SimpleNamespace(unlabelled=start)
    experiment = SimpleNamespace(
        frames=[], config=SimpleNamespace(weak=weak), potential=SimpleNamespace(species=("Cu",))
    )
    labels = SimpleNamespace(pool=None, cache=None)
    run = stages.Run(experiment, labels, tmp_path)
    monkeypatch.setattr(stages, "_cache", lambda labels: None)
    run._sampled(None)
    assert [record.getMessage() for record in caplog.records] == [said]


def test_structures_of_dynamics_that_stopped_or_were_collected_hold_what_was_held(tmp_path):
    atoms = molecule("CH3CH2OH")
    atoms.set_constraint([FixAtoms([0, 1]), FixCartesian([3], mask=[True, False, False])])
    atoms.set_momenta(np.full((9, 3), 0.1), apply_constraint=False)
    atoms.calc = EMT()
    watch = UncertaintyWatch(lambda atoms: np.ones(len(atoms)), tmp_path, stop=0.5, collect=0.5)
    assert "uncertain" in watch(atoms, 0)
    for name in ("stopped.extxyz", "collected.extxyz"):
        kept = read(tmp_path / name)
        assert np.array_equal(held_coordinates(kept), held_coordinates(atoms))
        assert held_coordinates(kept).sum() == 7
        assert kept.get_momenta().shape == (9, 3)


def test_a_store_of_labelled_structures_has_none(tmp_path):
    write_store(tmp_path / "a.lmdb", load_frames(written(tmp_path, "a.extxyz")))
    shutil.copy(tmp_path / "a.lmdb", tmp_path / "b.lmdb")
    assert [structure.moments for structure in load_structures(str(tmp_path / "b.lmdb"))] == [None, None]
