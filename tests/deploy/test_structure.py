"""What is said of a structure that a simulation starts from."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.constraints import FixAtoms
from ase.io import write

from pimlip_zoo.datasets.readers import load_frames
from pimlip_zoo.deploy.structure import read_structure
from pimlip_zoo.labelling.structures import load_structures

COPPER = bulk("Cu", cubic=True)
ETHANOL = molecule("CH3CH2OH", vacuum=6.0)


def written(path, atoms, kind):
    write(path, atoms, format=kind)
    return str(path)


@pytest.mark.parametrize("repeat", [1, 3])
@pytest.mark.parametrize(("name", "kind"), [("cu.con", "eon"), ("cu.sys", "sys")])
@pytest.mark.parametrize("read", [read_structure, load_frames])
def test_formats_that_do_not_say_where_a_cell_is_periodic_are_said_to_be_read_without(
    tmp_path, caplog, name, kind, repeat, read
):
    read(written(tmp_path / name, COPPER * (repeat, repeat, repeat), kind))
    assert caplog.text.count("taken as not periodic: a file of") == 1


def test_atoms_that_fill_a_cell_without_periodicity_are_said_where_a_simulation_starts(tmp_path, caplog):
    open_cell = COPPER * (3, 3, 3)
    open_cell.pbc = False
    read_structure(written(tmp_path / "cu.extxyz", open_cell, "extxyz"))
    assert "has a cell that its atoms fill, but pbc is off where it ends" in caplog.text
    assert 'pbc="T T T"' in caplog.text


@pytest.mark.parametrize(
    "atoms",
    [COPPER * (3, 3, 3), ETHANOL, Atoms("Cu", cell=[9, 9, 9])],
    ids=["periodic", "molecule in a box", "atom"],
)
def test_of_other_cells_nothing_is_said(tmp_path, caplog, atoms):
    read_structure(written(tmp_path / "a.extxyz", atoms, "extxyz"))
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("column", "value", "says"),
    [
        ("mass", np.full(2, 100.0), "mass is not read, elements have their usual masses (call it masses"),
        ("velo", np.ones((2, 3)), "velo is not read, there are no velocities (call it momenta"),
        ("fixed", np.array([True, False]), "fixed is not read, no atom is held (call it move_mask"),
    ],
)
def test_columns_that_a_simulation_would_look_at_by_another_name_are_said(
    tmp_path, caplog, column, value, says
):
    atoms = Atoms("Cu2", [[0, 0, 0], [0, 0, 2.5]])
    atoms.set_array(column, value)
    write(tmp_path / "a.extxyz", atoms)
    read_structure(str(tmp_path / "a.extxyz"))
    assert says in caplog.text
    load_structures(str(tmp_path / "a.extxyz"))
    kind = {"mass": "masses", "velo": "velocities", "fixed": "constraints"}[column]
    assert f"not kept: {kind}" in caplog.text  # `label` and `select` have no place for it either


def test_columns_by_the_names_of_ase_need_no_word(tmp_path, caplog):
    atoms = Atoms("Cu2", [[0, 0, 0], [0, 0, 2.5]])
    atoms.set_masses([64.0, 65.0])
    atoms.set_momenta(np.ones((2, 3)))
    atoms.set_constraint(FixAtoms([0]))
    write(tmp_path / "a.extxyz", atoms)
    read = read_structure(str(tmp_path / "a.extxyz"))
    assert read.constraints
    assert not caplog.text
