"""What a run says of its own uncertainty: the calculator, ``eval``, and dynamics that stop or collect."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from ase.io import read
from typer.testing import CliRunner

import pimlip_zoo
from pimlip_zoo.cli import app
from pimlip_zoo.config import load_config, save_config
from pimlip_zoo.datasets.neighbours import frame_to_sample
from pimlip_zoo.datasets.readers import load_frames
from pimlip_zoo.datasets.writing import write_frames
from pimlip_zoo.deploy.structure import read_structure
from pimlip_zoo.errors import InputError
from pimlip_zoo.evaluation import uncertainty_summary
from pimlip_zoo.experiment import prepare, train
from pimlip_zoo.experiment.stages import prepare_run, train_run
from pimlip_zoo.labelling.uncertainty import covered, posterior_path
from pimlip_zoo.labelling.watch import UncertaintyWatch
from pimlip_zoo.run_posterior import posterior_of

DATA = "builtin:ethanol-gfn2/test_300K@:6"
ONE = "builtin:ethanol-gfn2/test_300K@0"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "small"
    settings = {
        "data.train": "builtin:ethanol-gfn2/train@:8",
        "data.valid": "builtin:ethanol-gfn2/valid@:4",
        "model.name": "nequip",
        "model.num_layers": 2,
        "model.channels": 4,
        "model.l_max": 1,
        "model.cutoff": 3.5,
        "trainer.max_steps": 4,
        "trainer.valid_every": 4,
        "trainer.threads": 1,
    }
    config = load_config(None, list(settings.items()))
    train(prepare(config), folder)
    if not (folder / "config.yaml").exists():
        save_config(config, folder / "config.yaml")
    return folder


def called(*arguments, code=0):
    result = CliRunner().invoke(app, [*map(str, arguments)])
    if code == 2:
        assert isinstance(result.exception, InputError), result.output
        return str(result.exception)
    assert result.exit_code == code, result.output + str(result.exception)
    return result.output


def test_the_posterior_is_fitted_once_and_kept_with_the_run(run, monkeypatch):
    posterior = posterior_of(run)
    assert posterior_path(run / "checkpoints" / "best.ckpt").exists()
    monkeypatch.setattr("pimlip_zoo.run_posterior.fit_posterior", None)
    again = posterior_of(run)
    assert np.array_equal(again.root, posterior.root)


def test_a_checkpoint_alone_cannot_be_fitted(run, tmp_path):
    lone = tmp_path / "lone.ckpt"
    lone.write_bytes((run / "checkpoints" / "best.ckpt").read_bytes())
    with pytest.raises(InputError, match="the data that it was trained on are not known"):
        posterior_of(lone)


@pytest.fixture
def moved(tmp_path, monkeypatch):
    """A run that was trained on files, and the folder that it was trained in."""
    monkeypatch.chdir(tmp_path)
    frames = load_frames("builtin:ethanol-gfn2/train@:12")
    for name, part in (("train", frames[:4]), ("valid", frames[4:6]), ("pool", frames)):
        write_frames(tmp_path / f"{name}.extxyz", part)
    settings = {"model.channels": 4, "model.num_layers": 1, "model.l_max": 1, "trainer.max_steps": 2}
    data = {"data.train": "train.extxyz", "data.valid": "valid.extxyz", "data.check": False}
    config = load_config(None, [*settings.items(), *data.items()])
    train_run(prepare_run(config), tmp_path / "run")
    return tmp_path


@pytest.mark.parametrize("part", ["train", "valid"])
def test_nothing_is_fitted_to_or_known_of_other_structures_than_the_run_had(moved, part):
    write_frames(moved / f"{part}.extxyz", load_frames("builtin:ethanol-gfn2/train@6:9"))
    name = {"train": "training", "valid": "validation"}[part]
    with pytest.raises(InputError, match=f"{name} structures in {part}.extxyz are not those of the run"):
        posterior_of("run")
    assert not posterior_path(moved / "run" / "checkpoints" / "best.ckpt").exists()
    select = ["select", "pool.extxyz", "-n", 2, "-o", "out.extxyz", "--run", "run"]
    assert "are not those of the run" in called(*select, "--acquisition", "random", code=2)
    (moved / "run" / "data.json").unlink()  # the checkpoint has the hashes, too
    assert "are not those of the run" in called(*select, "--acquisition", "random", code=2)


def test_structures_of_a_run_that_are_not_found_are_named_with_it(moved, monkeypatch):
    (moved / "other").mkdir()
    monkeypatch.chdir(moved / "other")
    select = ["select", "../pool.extxyz", "-n", 2, "-o", "out.extxyz"]
    said = called(*select, "--run", "../run", "--acquisition", "random", code=2)
    assert "../run: the structures that it was trained on cannot be read again: train.extxyz" in said
    assert "relative names are those of the folder that it was trained in" in said
    called(*select, "--run", "../run/checkpoints/best.ckpt", "--acquisition", "random")


def test_the_calculator_reports_uncertainties(run):
    atoms = read_structure(ONE)
    atoms.calc = pimlip_zoo.calculator(run, uncertainty=True)
    atoms.get_forces()
    assert atoms.calc.results["energy_uncertainty"] > 0
    assert atoms.calc.results["forces_uncertainty"].shape == (9,)
    potential = pimlip_zoo.load(run)
    (frame,) = load_frames(ONE)
    graph = frame_to_sample(frame, potential.species, potential.cutoff).graph
    expected = posterior_of(run).forces_uncertainty(graph)
    assert np.allclose(atoms.calc.results["forces_uncertainty"], expected, rtol=1e-5)
    with pytest.raises(InputError, match="that of one run"):
        pimlip_zoo.calculator(run, run, uncertainty=True)


def test_eval_compares_uncertainties_with_errors(run, tmp_path):
    said = called(
        *("eval", run, "--data", DATA, "--uncertainty", "--json", tmp_path / "errors.json"),
        *("--calibration-plot", tmp_path / "plot.png"),
    )
    assert "uncertainty of forces" in said
    assert "the 90 % quantile covers" in said
    summary = json.loads((tmp_path / "errors.json").read_text())["uncertainty"]
    assert 0 <= summary["forces"]["coverage"] <= 1
    assert len(summary["forces"]["bins"]) == 10
    assert (tmp_path / "plot.png").stat().st_size > 1000


@pytest.mark.parametrize("acquisition", [None, "gradient", "coverage"])
def test_select_knows_what_a_run_was_trained_on(run, tmp_path, acquisition):
    out = tmp_path / "chosen.extxyz"
    way = [] if acquisition is None else ["--acquisition", acquisition]
    said = called("select", "builtin:ethanol-gfn2/train@:12", "--run", run, "-n", 3, "-o", out, *way)
    assert f"3 of 12 structures by {acquisition or 'mixed'}" in said
    assert "8 were left out" in said
    assert "8 structures: it is labelled already (0, 1, 2, 3, 4, ...)" in said
    assert {atoms.info["pool_index"] for atoms in read(out, ":")} < {8, 9, 10, 11}
    refusal = called(
        "select", "builtin:ethanol-gfn2/train@:12", "--run", run, "-n", 5, "-o", tmp_path / "b.xyz", code=2
    )
    assert "5 are wanted, 4 of 12 structures can be used" in refusal


def test_difference_chooses_where_cheap_level_and_run_disagree(run, tmp_path, monkeypatch):
    pytest.importorskip("tblite")
    monkeypatch.setenv("PIMLIP_ZOO_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "chosen.extxyz"
    command = ["select", "builtin:ethanol-gfn2/train@8:14", "--run", run, "-n", 2, "-o", out]
    said = called(*command, "--acquisition", "difference", "--cheap", "gfn2")
    assert "difference of its forces to the cheap level" in said
    assert "give --cheap gfn2" in called(*command, "--acquisition", "difference", "--overwrite", code=2)


def test_coverage_and_correlation_are_those_of_their_definitions():
    errors = np.array([1.0, 2.0, 3.0, 4.0])
    found = covered(errors, errors / 2, 2.0)
    assert found["correlation"] == pytest.approx(1.0)
    assert found["coverage"] == 1.0
    assert covered(errors, errors / 2, 1.99)["coverage"] == 0.0
    assert covered(errors, np.ones(4), 2.0)["correlation"] is None


def test_frames_without_labels_have_no_summary(run):
    from dataclasses import replace

    frames = [replace(frame, energy=None, forces=None) for frame in load_frames(DATA)]
    assert uncertainty_summary(pimlip_zoo.load(run), posterior_of(run), frames) == {}


def test_dynamics_stop_where_a_force_is_uncertain_and_keep_the_structure(run, tmp_path):
    out = tmp_path / "md"
    said = called(
        *("md", run, "--structure", ONE, "--steps", 30, "--temperature", 100, "--out", out),
        *("--stop-at-uncertainty", "1e-9"),
        code=1,
    )
    assert "stopped after 0 fs" in said.replace("\n", " ")
    (kept,) = read(out / "stopped.extxyz", ":")
    assert kept.arrays["forces_uncertainty"].shape == (9,)
    assert "stopped" in json.loads((out / "result.json").read_text())["verdict"]


def test_dynamics_collect_and_go_on(run, tmp_path):
    out = tmp_path / "md"
    said = called(
        *("md", run, "--structure", ONE, "--steps", 60, "--temperature", 10, "--reactive", "--out", out),
        *("--collect", "1e-9", "--ensemble", "nve"),
    )
    assert "2 structures collected" in said
    assert [atoms.info["step"] for atoms in read(out / "collected.extxyz", ":")] == [0, 50]


def test_dynamics_of_a_committee_use_its_spread(run, tmp_path):
    out, other = tmp_path / "md", tmp_path / "other"
    shutil.copytree(run, other)
    simulated = [*("--structure", ONE, "--steps", 10, "--out", out, "--stop-at-uncertainty")]
    assert "other: has the same weights as" in called("md", run, other, *simulated, "10", code=2)
    assert not out.exists()
    file = other / "checkpoints" / "best.ckpt"
    content = torch.load(file, weights_only=True)
    for value in content["state_dict"].values():
        if value.is_floating_point():
            value.add_(0.02)
    torch.save(content, file)
    said = called("md", run, other, *simulated, "100")
    (largest,) = re.findall(r"the least certain force was uncertain by (\S+) eV/Å", said)
    assert 0 < float(largest) < 100


def test_a_limit_that_is_none_is_refused(tmp_path):
    with pytest.raises(InputError, match="--stop-at-uncertainty: 0 eV/Å is not possible"):
        UncertaintyWatch(lambda atoms: np.zeros(len(atoms)), tmp_path, stop=0)
