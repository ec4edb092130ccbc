"""Steps, batches, model size and cutoff follow the data, are said with their reason, and what is given stays."""

import logging
from dataclasses import replace

import numpy as np
import pytest
from ase.build import bulk
from ase.io import write

from pimlip_zoo import experiment
from pimlip_zoo.config import load_config, parse_settings
from pimlip_zoo.datasets.frame import Frame
from pimlip_zoo.datasets.statistics import nearest_distance
from pimlip_zoo.errors import InputError
from pimlip_zoo.training.recipes import RunFacts, get_recipe


def chosen(structures, atoms, **more):
    facts = RunFacts(
        "nequip",
        frozenset({"cutoff"}),
        direct=False,
        structures=structures,
        labels=("energy", "forces"),
        passes=1.0,
        atoms=structures * atoms,
        labels_counted=structures * (3 * atoms + 1),
        validation=structures // 10,
        **more,
    )
    return get_recipe("default").settings(facts)


def test_a_thousand_small_molecules_have_what_version_2_had_for_all():
    settings = chosen(1000, 12)
    assert (settings["trainer.max_steps"], settings["data.batch_size"]) == (20_000, 10)
    assert settings["model.preset"] == "compact"
    assert settings["optimizer.name"] == "muon"


def test_the_rate_falls_with_the_root_of_the_passes():
    facts = RunFacts(
        "nequip",
        frozenset(),
        direct=False,
        structures=100,
        labels=("energy",),
        passes=1.0,
        steps=1000,
        batch=10,
        atoms=900,
    )
    assert get_recipe("default", 4).settings(facts)["optimizer.lr"] == 0.009  # 0.09 / sqrt(100)
    assert get_recipe("default", 3).settings(facts)["optimizer.lr"] == 0.005
    of_mace = get_recipe("default", 4).settings(replace(facts, model="mace"))
    assert of_mace["optimizer.lr"] == 0.005
    short, long = replace(facts, steps=10), replace(facts, steps=100_000)
    assert get_recipe("default", 4).settings(short)["optimizer.lr"] == 0.02
    assert get_recipe("default", 4).settings(long)["optimizer.lr"] == 0.002


@pytest.mark.parametrize(
    ("structures", "steps"), [(1, 4000), (50, 4500), (100_000, 200_000), (10**7, 400_000)]
)
def test_steps_grow_as_the_root_of_the_structures(structures, steps):
    assert chosen(structures, 10)["trainer.max_steps"] == steps


@pytest.mark.parametrize(("atoms", "batch"), [(2, 10), (20, 10), (32, 6), (64, 3), (192, 1), (2000, 1)])
def test_a_step_has_about_two_hundred_atoms(atoms, batch):
    assert chosen(500, atoms)["data.batch_size"] == batch


def test_the_model_grows_with_the_labels():
    assert [chosen(n, 30)["model.preset"] for n in (100, 10_000, 100_000, 1_000_000)] == [
        *("compact", "compact", "medium", "large")
    ]


def test_the_cutoff_reaches_three_shells_where_neighbours_are_far():
    assert "model.cutoff" not in chosen(100, 30, nearest=2.5)
    assert chosen(100, 30, nearest=3.3)["model.cutoff"] == 5.8
    assert chosen(100, 30, nearest=6.0)["model.cutoff"] == 7.0


def test_validation_takes_a_small_part_of_the_time():
    for structures in (50, 1000, 100_000):
        settings = chosen(structures, 10)
        steps, every = settings["trainer.max_steps"], settings["trainer.valid_every"]
        assert steps // every >= 20 or every == 2_500
        assert structures / 10 / 3 / settings["data.batch_size"] < 0.5 * every


def test_what_is_given_decides_the_rest():
    """The rate is that of the passes that are made."""
    assert chosen(100, 10, steps=100_000)["optimizer.lr"] < chosen(100, 10, steps=1_000)["optimizer.lr"]
    assert chosen(100, 10, batch=3)["data.batch_size"] == 3


def test_distances_of_neighbours():
    silicon = bulk("Si", "diamond", a=5.43)
    frame = Frame(silicon.numbers, silicon.positions, cell=np.array(silicon.cell), pbc=np.ones(3, dtype=bool))
    far = Frame(np.array([18, 18]), np.array([[0.0, 0, 0], [5.0, 0, 0]]))
    assert nearest_distance([frame]) == pytest.approx(5.43 * 3**0.5 / 4)
    assert nearest_distance([far]) == pytest.approx(5.0)
    assert nearest_distance([]) == 0.0
    assert nearest_distance([Frame(np.array([18]), np.zeros((1, 3)))]) == 0.0


@pytest.fixture
def file(tmp_path):
    from ase.calculators.emt import EMT

    frames, rng = [], np.random.default_rng(0)
    for _ in range(8):
        atoms = bulk("Pb", cubic=True) * (2, 2, 2)
        atoms.positions += rng.normal(0, 0.1, atoms.positions.shape)
        atoms.numbers[:] = 79  # gold, stretched: as far apart as lead
        atoms.calc = EMT()
        atoms.get_forces()
        frames.append(atoms)
    write(tmp_path / "train.extxyz", frames)
    return tmp_path / "train.extxyz"


def test_a_run_says_what_was_chosen_and_why_and_keeps_it(file, caplog):
    settings = [f"data.train={file}", "model.channels=4", "model.radial_hidden=[4]"]
    with caplog.at_level(logging.INFO, "pimlip_zoo"):
        config = experiment.prepare(load_config(None, parse_settings(settings))).config
    assert (config.trainer.max_steps, config.data.batch_size) == (4000, 6)
    assert config.model.configure().cutoff == pytest.approx(5.75, abs=0.2)
    assert "4,000 steps for 7 structures; batches of 6 structures of 32 atoms" in caplog.text
    assert f"cutoff {config.model.configure().cutoff} Å for neighbours 3.3 Å apart" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO, "pimlip_zoo"):
        given = load_config(None, parse_settings([*settings, "data.batch_size=2", "model.cutoff=4"]))
        config = experiment.prepare(given).config
    assert (config.data.batch_size, config.model.configure().cutoff) == (2, 4.0)
    assert "batches of" not in caplog.text
    older = load_config(None, parse_settings([*settings, "recipe.version=2"]))
    config = experiment.prepare(older).config
    assert (config.trainer.max_steps, config.data.batch_size, config.model.configure().cutoff) == (
        20_000,
        10,
        5.0,
    )


def test_the_preset_that_a_recipe_chose_is_not_asked_of_another_architecture(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(
        "model: {name: nequip, preset: compact}\nrecipe: {name: default, filled: [model.preset]}\n"
    )
    assert load_config(file, [("model.name", "mace")]).model.preset == "small"
    assert load_config(file).model.preset == "compact"
    file.write_text("model: {name: nequip, preset: compact}\n")
    with pytest.raises(InputError, match="mace has no preset 'compact'"):
        load_config(file, [("model.name", "mace")])
