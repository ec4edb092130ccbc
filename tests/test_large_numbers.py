"""Whole numbers that fit nowhere are refused in one line, wherever they are given."""

import math

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms
from typer.testing import CliRunner

from pimlip_zoo.cli import app
from pimlip_zoo.config import load_config, parse_settings
from pimlip_zoo.datasets.audit import survey_data
from pimlip_zoo.datasets.builtin import load_builtin
from pimlip_zoo.datasets.splits import make_split
from pimlip_zoo.deploy.lammps import input as lammps
from pimlip_zoo.deploy.md import MDSettings, run_md
from pimlip_zoo.errors import InputError
from pimlip_zoo.labelling.select import select

HUGE = 10**20


@pytest.mark.parametrize(
    "command",
    [
        "md RUN --structure molecule:H2O --seed",
        "md RUN --structure molecule:H2O --steps",
        "data split DATA --seed",
        "data split DATA --gap",
        "select DATA -o chosen.extxyz --number",
        "label DATA --calculator emt -o labels.lmdb --workers",
        "lammps input RUN --structure molecule:H2O --steps",
        "train --data DATA --max-steps",
        "weak advise --data DATA --steps",
    ],
)
@pytest.mark.parametrize("number", [HUGE, -HUGE, 10**400])
def test_options_of_commands(command, number):
    result = CliRunner().invoke(app, [*command.split(), str(number)])
    if result.exit_code == 2:  # an option with bounds of its own
        assert "Invalid value" in result.output or "No such command" in result.output
        return
    assert isinstance(result.exception, InputError), result.exception
    option = command.split()[-1]
    assert str(result.exception).startswith(option)
    assert str(result.exception).endswith("is too large")


@pytest.mark.parametrize(
    "key", ["model.channels", "data.batch_size", "trainer.max_steps", "seed", "weak.labels.pool.seed"]
)
def test_options_of_the_configuration(key):
    with pytest.raises(InputError, match=r"too large|less than"):
        load_config(None, parse_settings([f"{key}={HUGE}"])).model.configure()


def test_numbers_that_need_not_be_whole_may_be_large():
    config = load_config(None, parse_settings([f"loss.forces.weight={HUGE}"]))
    assert config.loss.forces.weight == 1e20


@pytest.mark.parametrize("name", ["steps", "interval", "temperature", "friction", "seed"])
@pytest.mark.parametrize("value", [HUGE, 10**400, math.nan, math.inf, -1])
def test_settings_of_dynamics(name, value):
    with pytest.raises(InputError, match=f"{name}: .* is not possible"):
        MDSettings(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("seed", 2**31), ("chunk", 2**31), ("every", HUGE), ("steps", HUGE), ("seed", 10**400)),
        *(
            ("temperature", math.nan),
            ("temperature", math.inf),
            ("pressure", math.nan),
            ("timestep", math.nan),
        ),
    ],
)
def test_settings_that_lammps_cannot_have(name, value):
    with pytest.raises(InputError, match=name):
        lammps.MDSettings(**{name: value})


def test_seeds_are_not_negative():
    with pytest.raises(InputError, match="seed: -1 is not possible"):
        make_split(survey_data("train", "builtin:ethanol-gfn2/train"), seed=-1)
    with pytest.raises(InputError, match="seed: -1 is not possible"):
        select(load_builtin("ethanol-gfn2")[:4], 1, acquisition="random", seed=-1)


@pytest.mark.parametrize("mass", [0.0, -1.0, math.nan, math.inf])
def test_masses_that_cannot_be_are_refused_before_anything_moves(tmp_path, mass):
    atoms = bulk("Cu", cubic=True)
    atoms.calc = EMT()
    masses = atoms.get_masses()
    masses[1] = mass
    atoms.set_masses(masses)
    with pytest.raises(InputError, match="masses: a mass is no positive number"):
        run_md(atoms, MDSettings(steps=1), tmp_path / "md")
    assert not (tmp_path / "md").exists()


def test_dynamics_in_which_nothing_may_move_are_refused(tmp_path):
    atoms = bulk("Cu", cubic=True)
    atoms.calc = EMT()
    atoms.set_constraint(FixAtoms(np.arange(len(atoms))))
    with pytest.raises(InputError, match="all atoms are held fixed"):
        run_md(atoms, MDSettings(steps=1), tmp_path / "md")
