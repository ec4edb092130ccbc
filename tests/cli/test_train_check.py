"""What ``data check`` refuses, ``train`` refuses in the same words, unless one insists."""

from dataclasses import replace

import pytest
from ase.io import write

from pimlip_zoo.datasets.builtin import load_builtin
from pimlip_zoo.datasets.frame import frame_to_atoms
from pimlip_zoo.experiment import check

SMALL = ["--set", "model.channels=4", "--set", "model.radial_hidden=[4]", "--max-steps", 2]


@pytest.fixture
def file(tmp_path):
    """Writes some frames of ethanol, changed."""

    def make(name="train.extxyz", frames=slice(30), forces=1.0):
        chosen = load_builtin("ethanol-gfn2/train")[frames]
        path = tmp_path / name
        write(path, [frame_to_atoms(replace(f, forces=f.forces * forces)) for f in chosen])
        return path

    return make


def words_of_check(cli, *arguments):
    result = cli("data", "check", *arguments)
    assert result.code == 3
    return " ".join(result.out.split())


def test_mixed_units_are_refused_in_the_words_of_data_check(cli, refused, file):
    path = file(forces=1 / 0.0433641)
    line = refused("train", "--data", path, *SMALL, says=[str(path), "kcal/mol/Å", "--no-check"])
    message = line.split(f"{path}, ")[-1].split(f"{path}: ")[-1].split(" (")[0]
    told = words_of_check(cli, path)
    assert all(word in told for word in message.split()), (message, told)


def test_a_test_set_that_is_the_training_set_is_refused(refused, file):
    path = file()
    says = [str(path), "30 of 30 structures are also in train"]
    refused("train", "--data", path, "--test", path, *SMALL, says=says)
    refused("train", "--data", path, "--valid", path, *SMALL, says=says)


def test_one_can_insist(cli, file, tmp_path):
    path = file(forces=1 / 0.0433641)
    result = cli("train", "--data", path, "--no-check", *SMALL, "--out", tmp_path / "run")
    assert result.code == 0, result
    assert "not checked" in result.out
    assert "not checked" in (tmp_path / "run" / "log.txt").read_text()
    assert cli("train", "--resume", "--out", tmp_path / "run", "--max-steps", 3).code == 0


def test_warnings_are_said_before_the_training(cli, file, tmp_path):
    path = file()
    with path.open("a") as opened:
        opened.write(file("again.extxyz", slice(1)).read_text())
    result = cli("train", "--data", path, *SMALL, "--out", tmp_path / "run")
    assert f"warning: {path}: 1 structure is equal to an earlier one" in result.out
    assert "checked: warnings" in result.out
    assert "nothing speaks against" not in result.out


def test_eval_says_that_labels_are_orders_of_magnitude_away(cli, file, tmp_path):
    path = file()
    assert cli("train", "--data", path, *SMALL, "--out", tmp_path / "run").code == 0
    result = cli("eval", tmp_path / "run", "--data", file("other.extxyz", slice(40, 50), forces=1e4))
    assert result.code == 0
    assert "times what the potential says" in " ".join(result.out.split())


def test_of_a_large_set_a_sample_is_looked_at(cli, file, tmp_path, monkeypatch):
    path = file(frames=slice(200))
    monkeypatch.setattr(check, "ATOMS", 900)
    result = cli("train", "--data", path, *SMALL, "--out", tmp_path / "run")
    assert "train: 100 of 200 structures" in result.out
    assert result.code == 0
