"""What is finished of a curve is taken for what is asked for only where it is that: options, structures, tests."""

import json
import shutil
from dataclasses import replace

import ase.io
import pytest
import yaml

from pimlip_zoo.cli.curve import _check_folder
from pimlip_zoo.datasets.builtin import load_builtin
from pimlip_zoo.datasets.frame import frame_to_atoms
from pimlip_zoo.errors import InputError
from pimlip_zoo.experiment.curve import Point, collect, collect_physics, has_results, run_points

SMALL = [("model.channels", 4), ("trainer.valid_every", 2), ("data.max_valid", 3)]
POINTS = (Point(5, "none", 0),)
STEPS = ("trainer.max_steps", 2)


def write(path, frames):
    ase.io.write(path, [frame_to_atoms(frame) for frame in frames])
    return str(path)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("curve")
    train = write(folder / "train.extxyz", load_builtin("ethanol-gfn2")[:20])
    test = write(folder / "test.extxyz", load_builtin("ethanol-gfn2")[30:33])
    assert run_points(POINTS, given(train, STEPS), [test], folder / "curve") is None
    return folder


def given(train, *more):
    return [*SMALL, ("data.train", str(train)), *more]


def again(folder, train=None, test=None, settings=(STEPS,), points=POINTS, config_file=None):
    train, test = train or folder / "train.extxyz", test or folder / "test.extxyz"
    return run_points(points, given(train, *settings), [str(test)], folder / "curve", config_file)


def without_channels(folder):
    settings = [option for option in given(folder / "train.extxyz", STEPS) if option[0] != "model.channels"]
    return run_points(POINTS, settings, [str(folder / "test.extxyz")], folder / "curve")


def test_the_same_command_trains_nothing(made):
    result = made / "curve" / "none-5-seed0" / "result.json"
    before = result.read_text()
    assert again(made) is None
    assert again(made, settings=[STEPS, ("trainer.threads", 1), ("data.num_workers", 0)]) is None
    assert result.read_text() == before


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ([("trainer.max_steps", 4)], "trainer.max_steps: was made with 2, now it is 4"),
        ([], "trainer.max_steps: was made with 2, now it is"),
        ([STEPS, ("model.name", "mace")], "model.name: was made with nequip, now it is mace"),
        ([STEPS, ("optimizer.lr", 0.5)], "optimizer.lr: was made with"),
        ([STEPS, ("model.channels", 8)], "model.channels: was made with 4, now it is 8"),
        ([STEPS, ("loss.forces.weight", 7.0)], "loss.forces.weight: was made with"),
    ],
)
def test_a_point_that_was_made_with_other_options_is_refused_before_the_next_is_trained(made, settings, says):
    points = [Point(5, "none", 0), Point(8, "none", 0)]
    with pytest.raises(InputError, match=says.replace(".", r"\.")):
        again(made, settings=settings, points=points)
    assert not (made / "curve" / "none-8-seed0").exists()


def test_options_of_a_file_and_options_that_are_not_given_any_more_are_compared(made, tmp_path):
    (tmp_path / "run.yaml").write_text("optimizer: {lr: 0.5}\n")
    with pytest.raises(InputError, match=r"optimizer\.lr: was made with .*, now it is 0\.5"):
        again(made, config_file=tmp_path / "run.yaml")
    path = made / "curve" / "none-5-seed0" / "result.json"
    kept = path.read_text()
    content = json.loads(kept)
    assert content["given"]["model.channels"] == 4
    try:
        with pytest.raises(InputError, match=r"model\.channels: was made with 4, now it is"):
            without_channels(made)
        del content["given"], content["test_structures"]  # as versions before wrote it
        path.write_text(json.dumps(content))
        assert again(made) is None
        assert without_channels(made) is None  # it is not known that they were given
        with pytest.raises(InputError, match=r"trainer\.max_steps: was made with 2, now it is 4"):
            again(made, settings=[("trainer.max_steps", 4)])
    finally:
        path.write_text(kept)


def test_other_structures_under_the_same_name_are_refused(made):
    train, test = made / "train.extxyz", made / "test.extxyz"
    for path, says in (
        (train, "training structures are not those of the run"),
        (test, "on other structures of"),
    ):
        kept = path.read_bytes()
        frames = load_builtin("ethanol-gfn2")[: 20 if path is train else 3]
        try:
            write(path, [replace(frame, energy=frame.energy - 100.0) for frame in frames])
            with pytest.raises(InputError, match=says):
                again(made)
        finally:
            path.write_bytes(kept)


def test_the_same_structures_under_another_name_are_the_same(made, tmp_path):
    (tmp_path / "copy.extxyz").write_bytes((made / "train.extxyz").read_bytes())
    assert again(made, train=tmp_path / "copy.extxyz") is None


def test_errors_on_another_test_set_are_not_taken_for_those_on_this(made, tmp_path):
    other = write(tmp_path / "other.extxyz", load_builtin("ethanol-gfn2")[40:42])
    with pytest.raises(InputError, match=r"its errors are on .*test\.extxyz, not on .*other\.extxyz"):
        again(made, test=other)


def test_results_of_simulations_beside_a_curve_are_none_of_its_points(made, tmp_path):
    (tmp_path / "md-1").mkdir()
    (tmp_path / "md-1" / "result.json").write_text(json.dumps({"steps": 5, "stable": True}))
    (tmp_path / "curve.csv").write_text("mine")
    assert not has_results(tmp_path)
    with pytest.raises(InputError, match=r"curve.csv, --out: is there, and would be replaced"):
        _check_folder(tmp_path)
    shutil.copytree(made / "curve" / "none-5-seed0", tmp_path / "none-5-seed0")
    assert len(collect(tmp_path)) == 1
    assert collect_physics(tmp_path) == []
    (tmp_path / "none-5-seed0" / "result.json").write_text("{}")
    with pytest.raises(InputError, match=r"none-5-seed0/result.json, tests: is no result"):
        collect(tmp_path)
    with pytest.raises(InputError, match=r"curve.csv, --out: is a file, a folder is needed"):
        _check_folder(tmp_path / "curve.csv")


def test_further_points_are_not_trained_with_a_newer_version_of_the_recipe(made, tmp_path):
    shutil.copytree(made / "curve", tmp_path / "curve")
    data = {"train": made / "train.extxyz", "test": made / "test.extxyz"}
    config = tmp_path / "curve" / "none-5-seed0" / "config.yaml"
    content = yaml.safe_load(config.read_text())
    content["recipe"]["version"] -= 1
    config.write_text(yaml.safe_dump(content))
    assert again(tmp_path, **data) is None  # nothing is trained
    points = (*POINTS, Point(6, "none", 0))
    with pytest.raises(
        InputError,
        match=rf"none-5-seed0, recipe.version: was made with version {content['recipe']['version']} of",
    ):
        again(tmp_path, **data, points=points)
    assert not (tmp_path / "curve" / "none-6-seed0").exists()
    version = ("recipe.version", content["recipe"]["version"])
    assert again(tmp_path, **data, settings=[STEPS, version], points=points) is None
    made_now = yaml.safe_load((tmp_path / "curve" / "none-6-seed0" / "config.yaml").read_text())
    assert made_now["recipe"]["version"] == content["recipe"]["version"]
