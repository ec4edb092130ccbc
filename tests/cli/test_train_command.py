"""``pimlip-zoo train`` and what follows it; everything that a user can get wrong is one line, exit code 2, no trace."""

import csv
import dataclasses
import errno
import json
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from ase.io import write

from pimlip_zoo.cli.train import _cut_short, _with_few_labels
from pimlip_zoo.config import load_config, parse_settings
from pimlip_zoo.datasets.frame import frame_to_atoms
from pimlip_zoo.datasets.readers import load_frames
from pimlip_zoo.training import callbacks
from pimlip_zoo.training.checkpoint import load_potential, read_checkpoint

DATA = "builtin:ethanol-gfn2/train@:12"
SMALL = ["--set", "model.channels=4", "--set", "model.radial_hidden=[4]", "--set", "trainer.valid_every=2"]
PRETRAINED = ["--weak", "pretrain"]
for _option in ("calculator=emt", "steps=3", "pool.structures=6", "pool.method=displaced"):
    PRETRAINED += ["--set", f"weak.labels.{_option}"]


def frame(positions, energy="-1.0", forces=True, numbers=("O", "H", "H"), head=""):
    """An extended XYZ frame, to the letter."""
    columns = "species:S:1:pos:R:3" + (":forces:R:3" if forces else "")
    energy = f" energy={energy}" if energy is not None else ""
    lines = [str(len(numbers)), f"Properties={columns}{energy}{head}"]
    for symbol, position in zip(numbers, positions, strict=True):
        values = [*position, *([0.1, 0.0, -0.1] if forces else [])]
        lines.append(" ".join([symbol, *map(str, values)]))
    return "\n".join(lines) + "\n"


WATER = np.array([[0.0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])


def data_file(path, bad, place=2, count=4, **good):
    """A file of good frames with a bad one among them."""
    frames = [frame(WATER + 0.01 * i, **good) for i in range(count)]
    frames[place] = bad
    path.write_text("".join(frames))
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    from pimlip_zoo.config import load_config, parse_settings
    from pimlip_zoo.experiment.stages import prepare_run, train_run

    settings = [*SMALL[1::2], f"data.train={DATA}", "trainer.max_steps=4"]
    folder = tmp_path_factory.mktemp("trained") / "run"
    train_run(prepare_run(load_config(None, parse_settings(settings))), folder)
    return folder


@pytest.fixture
def run(trained, tmp_path):
    """A run of four steps."""
    return shutil.copytree(trained, tmp_path / "run")


# ---- what it does


def frames_of(count=50, **changes):
    return [
        dataclasses.replace(frame, **changes) for frame in load_frames(f"builtin:ethanol-gfn2/train@:{count}")
    ]


@pytest.mark.parametrize(
    ("options", "frames", "says"),
    [
        ("model.name=mace", {}, "--from builtin:organic-gfn2/mace,"),
        ("model.name=nequip", {}, "--from builtin:organic-gfn2/nequip,"),
        ("model.name=mace", {"count": 201}, None),
        ("model.name=mace finetune.run=builtin:organic-gfn2/mace", {}, None),
        ("weak.preset=gfn2", {}, None),
        ("weak.labels.method=delta weak.labels.calculator=emt", {}, None),
        ("model.name=mace", {"info": {"charge": -1}}, None),
        ("model.name=mace", {"numbers": np.full(9, 14)}, None),
        ("model.name=mace", {"cell": 9 * np.eye(3), "pbc": np.array([True, False, False])}, None),
    ],
)
def test_few_labels_of_molecules_that_have_a_start_are_told_of_it(options, frames, says):
    config = load_config(None, [("data.train", "few.extxyz"), *parse_settings(options.split())])
    said = _with_few_labels(config, frames_of(**frames))
    assert (says or "") in said
    assert bool(said) is bool(says)
    builtin = load_config(None, [("data.train", "builtin:ethanol-gfn2"), *parse_settings(options.split())])
    assert _with_few_labels(builtin, frames_of(**frames)) == ""


def test_a_run_folder_holds_what_is_needed_to_use_resume_and_understand_it(cli, tmp_path):
    arguments = ["--test", "builtin:ethanol-gfn2/test_300K@:3", "--max-steps", 4, "--out", tmp_path / "run"]
    result = cli("train", "--model", "nequip", "--data", DATA, *SMALL, *arguments)
    assert result.code == 0, result
    run = tmp_path / "run"
    names = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
    wanted = "config.yaml data.json metrics.csv log.txt report.html test.json parity.npz"
    assert names == {*wanted.split(), "checkpoints/best.ckpt", "checkpoints/last.ckpt"}
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["model"]["channels"] == 4
    assert config["trainer"]["max_steps"] == 4
    with (run / "metrics.csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["2", "4"]
    errors = json.loads((run / "test.json").read_text())
    assert set(errors) == {"training", "validation", "builtin:ethanol-gfn2/test_300K@:3"}
    assert (
        "training: 11 structures, 99 atoms; labels: energy 11/11, forces 11/11"
        in (run / "log.txt").read_text()
    )
    assert "meV/atom" in result.out
    assert load_potential(run).species == ("H", "C", "O")


def test_resuming_goes_on_to_the_new_number_of_steps(cli, run):
    result = cli("train", "--resume", "--out", run, "--max-steps", 6)
    assert result.code == 0, result
    assert read_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"] == 6


def test_resuming_a_complete_run_says_that_nothing_is_trained(cli, run):
    result = cli("train", "--resume", "--out", run)
    assert result.code == 0, result
    assert "the run is complete: nothing is trained (--max-steps above 4 goes on with it)" in result.out


@pytest.mark.parametrize(
    ("trainer", "seconds", "before", "says"),
    [
        ({"max_time": "1m"}, 60.0, 0, "--max-time ended the run at 50 of 100 steps, which take about 2 min"),
        (
            {"max_time": "1m", "patience": 3},
            60.0,
            0,
            "--max-time or --patience ended the run at 50 of 100 steps",
        ),
        ({"patience": 3}, 60.0, 0, "--patience ended the run at 50 of 100 steps"),
        ({"max_time": "1m"}, 30.0, 25, "which take about 2 min"),  # of this part alone
        ({"max_time": "1m"}, 0.1, 49, "of 100 steps"),
        ({}, 60.0, 0, ""),
    ],
)
def test_what_ended_a_run_before_its_last_step_is_said(trainer, seconds, before, says):
    config = load_config(
        None, [("trainer.max_steps", 100), *((f"trainer.{k}", v) for k, v in trainer.items())]
    )
    said = _cut_short(config, SimpleNamespace(steps=50, seconds=seconds), before)
    assert says in said
    assert ("about" in said) == (bool(trainer) and before < 49)


def test_the_newest_run_is_resumed_when_none_is_named(cli, run, tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    run.rename(tmp_path / "runs" / "nequip-1")
    monkeypatch.chdir(tmp_path)
    result = cli("train", "--resume", "--max-steps", 5)
    assert result.code == 0, result
    assert "nequip-1" in result.out


def test_runs_without_a_name_are_numbered(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number in (1, 2):
        assert cli("train", "--data", DATA, *SMALL, "--max-steps", 1).code == 0
        assert (tmp_path / "runs" / f"nequip-{number}" / "report.html").exists()


def test_a_number_that_another_process_took_meanwhile_is_not_shared(cli, tmp_path, monkeypatch):
    from pimlip_zoo.experiment import stages

    prepare_run = stages.prepare_run

    def slow(*arguments, **options):
        (tmp_path / "runs" / "nequip-1").mkdir(parents=True)
        return prepare_run(*arguments, **options)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stages, "prepare_run", slow)
    assert cli("train", "--data", DATA, *SMALL, "--max-steps", 1).code == 0
    assert not list((tmp_path / "runs" / "nequip-1").iterdir())
    assert (tmp_path / "runs" / "nequip-2" / "report.html").exists()
    assert not list((tmp_path / "runs").rglob(".lock"))


def test_a_run_that_ended_before_its_first_checkpoint_is_resumed_from_its_start(cli, run, tmp_path):
    shutil.rmtree(run / "checkpoints")
    result = cli("train", "--resume", "--out", run)
    assert result.code == 0, result
    assert read_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"] == 4


def test_a_run_that_was_stopped_in_a_stage_is_resumed_as_it_says(cli, tmp_path, monkeypatch):
    import signal

    from pimlip_zoo.training.callbacks import GracefulStop

    monkeypatch.setenv("PIMLIP_ZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    options = ["--data", DATA, *SMALL, "--max-steps", 2, *PRETRAINED]
    ended = GracefulStop.on_train_batch_end

    def stopping(self, trainer, *arguments):
        self.signal = signal.SIGTERM
        ended(self, trainer, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(GracefulStop, "on_train_batch_end", stopping)
        result = cli("train", *options)
    assert result.code == 128 + signal.SIGTERM
    assert "go on with: pimlip-zoo train --out runs/nequip-1 --resume" in result.out
    assert (
        cli("train", *options, "--out", "runs/nequip-1").err.count("--resume it, or give another --out") == 1
    )
    shutil.copytree("runs/nequip-1", "runs/nequip-2")
    assert cli("train", "--out", "runs/nequip-1", "--resume").code == 0
    assert cli("train", *options, "--out", "runs/nequip-2", "--resume").code == 0
    first, second = (load_potential(f"runs/nequip-{number}").state_dict() for number in (1, 2))
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_a_limit_of_time_is_said_to_be_that_of_all_stages_and_of_no_labelling(cli, tmp_path, monkeypatch):
    monkeypatch.setenv("PIMLIP_ZOO_CACHE", str(tmp_path / "cache"))
    options = ["--data", DATA, *SMALL, "--max-steps", 2, *PRETRAINED, "--max-time", "10m"]
    result = cli("train", *options, "--out", tmp_path / "run")
    assert result.code == 0, result
    said = " ".join(result.out.replace("│", " ").split())
    assert (
        "3 steps on weak labels, then 2 steps of 10 structures, or 10m all together if that is sooner" in said
    )
    assert "(--max-time is that of the training: computing weak labels comes before it)" in said


def test_fine_tuning_starts_from_a_run(cli, run, tmp_path):
    result = cli("train", "--from", run, "--data", DATA, "--max-steps", 1, "--out", tmp_path / "tuned")
    assert result.code == 0, result
    assert "the run, re-fitted" in result.out
    assert "are among those that" not in result.err + result.out  # the same file is divided as before
    config = yaml.safe_load((tmp_path / "tuned" / "config.yaml").read_text())
    assert config["finetune"]["run"] == str(run)
    assert config["model"]["channels"] == 4


def test_eval_writes_what_the_documentation_says(cli, run, tmp_path):
    out, plot = tmp_path / "errors.json", tmp_path / "parity.png"
    test = "builtin:ethanol-gfn2/test_300K@:4"
    result = cli("eval", run, "--data", test, "--json", out, "--plot", plot)
    assert result.code == 0, result
    errors = json.loads(out.read_text())
    assert errors["n_structures"] == 4
    assert errors["n_atoms"] == 36
    assert errors["stress"] is None
    assert set(errors["per_species"]) == {"H", "C", "O"}
    for quantity in ("energy", "energy_per_atom", "forces"):
        assert 0 < errors[quantity]["mae"] <= errors[quantity]["rmse"]
    assert errors["energy"]["mae"] == pytest.approx(9 * errors["energy_per_atom"]["mae"])
    assert errors["model"] == str(run)
    assert errors["seconds"] > 0
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_fine_tuning_says_that_the_run_knows_structures_which_validate(cli, run, tmp_path):
    record = json.loads((run / "data.json").read_text())
    assert record["training"]["structures"] == 11
    result = cli(
        *("train", "--from", run, "--data", "builtin:ethanol-gfn2/train@20:24", "--valid", DATA),
        *("--max-steps", 1, "--out", tmp_path / "tuned"),
    )
    assert result.code == 0, result
    said = " ".join((result.out + result.err).split())
    assert f"11 of 12 validation structures are among those that {run} was trained on" in said


def test_eval_says_how_many_of_the_structures_the_run_has_seen(cli, run, tmp_path):
    record = json.loads((run / "data.json").read_text())
    seen = {part: record[part]["structures"] for part in ("training", "validation")}
    assert sum(seen.values()) == 12
    converted = tmp_path / "same.xyz"  # another format, fewer digits
    atoms = [frame_to_atoms(f) for f in load_frames(DATA) + load_frames("builtin:ethanol-gfn2/test_300K@:4")]
    write(converted, atoms, format="extxyz")
    out = tmp_path / "errors.json"
    result = cli("eval", run, "--data", converted, "--json", out)
    assert result.code == 0, result
    said = f"this run has seen 12 of these 16 structures ({seen['training']} were trained on, "
    assert said in result.out
    assert "the errors say little of new ones" in result.out
    assert json.loads(out.read_text())["seen"] == {"structures": 16, **seen}
    assert "the errors say nothing of new ones" in cli("eval", run, "--data", DATA).out
    new = cli("eval", run, "--data", "builtin:ethanol-gfn2/test_300K@:4", "--json", out)
    assert "has seen" not in new.out
    assert "seen" not in json.loads(out.read_text())


def test_eval_says_that_a_training_has_not_ended(cli, run, tmp_path):
    test, out = "builtin:ethanol-gfn2/test_300K@:2", tmp_path / "errors.json"
    assert "has not ended" not in cli("eval", run, "--data", test).out
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("max_steps: 4", "max_steps: 9000"))
    result = cli("eval", run, "--data", test, "--json", out)
    assert result.code == 0, result
    assert "the training has not ended (step 4 of 9,000)" in result.out
    assert json.loads(out.read_text())["unfinished"] == {"step": 4, "of": 9000}


def test_eval_takes_a_checkpoint_and_a_precision(cli, run):
    checkpoint = run / "checkpoints" / "last.ckpt"
    result = cli("eval", checkpoint, "--data", "builtin:ethanol-gfn2/test_300K@:2", "--dtype", "float64")
    assert result.code == 0, result


def test_models_lists_the_architectures_and_the_options_of_one(cli):
    result = cli("models")
    assert result.code == 0
    for name in ("nequip", "allegro", "mace"):
        assert name in result.out
    described = json.loads(cli("models", "nequip", "--json").out)
    assert described["options"]["channels"]["default"] == 32
    assert described["presets"]["small"]["parameters"] > 0
    assert described["options"]["l_max"]["help"]


def test_doctor_says_that_training_works(cli):
    result = cli("doctor")
    assert result.code == 0
    assert "a training step: energy, forces and their gradient are finite" in result.out
    assert torch.__version__.split("+")[0] in result.out


def test_doctor_names_what_to_install_and_what_is_kept(cli, monkeypatch, tmp_path):
    monkeypatch.setenv("PIMLIP_ZOO_CACHE", str(tmp_path))
    monkeypatch.setattr("pimlip_zoo.cli.doctor.OPTIONAL", {"not_there": "pip install 'pimlip-zoo[extra]'"})
    (tmp_path / "labels").write_bytes(bytes(3_000_000))
    (tmp_path / "again").hardlink_to(tmp_path / "labels")
    result = cli("doctor")
    assert "pip install 'pimlip-zoo[extra]'" in result.out
    assert f"{tmp_path} (3 MB)" in result.out.replace("\n", " ")


# ---- bad data

BAD_DATA = {
    "NaN position": (frame([[0, 0, 0], ["nan", 0, 0], [0, 1, 0]]), ["positions", "atom 1", "NaN"]),
    "infinite position": (frame([[0, 0, 0], ["inf", 0, 0], [0, 1, 0]]), ["positions", "atom 1"]),
    "NaN energy": (frame(WATER, energy="nan"), ["energy", "NaN"]),
    "infinite energy": (frame(WATER, energy="inf"), ["energy", "infinite"]),
    "two atoms on one spot": (
        frame([[0, 0, 0], [1, 0, 0], [1, 0, 0]]),
        ["positions", "atoms 1 and 2", "one spot"],
    ),
    "singular cell": (
        frame(WATER, head=' Lattice="4 0 0 0 4 0 4 4 0" pbc="T T T"'),
        ["cell", "singular"],
    ),
    "periodic without a cell vector": (
        frame(WATER, head=' Lattice="4 0 0 0 4 0 0 0 0" pbc="T T T"'),
        ["cell", "direction c"],
    ),
    "a word for a number": (frame([[0, 0, 0], ["here", 0, 0], [0, 1, 0]]), ["here"]),
    "no element": (frame(WATER, numbers=("O", "H", "Zz")), ["Zz"]),
}


@pytest.mark.parametrize("fault", list(BAD_DATA))
def test_a_frame_that_cannot_be_used_is_named_by_file_and_frame(refused, tmp_path, fault):
    bad, says = BAD_DATA[fault]
    path = data_file(tmp_path / "train.extxyz", bad)
    refused("train", "--data", path, *SMALL, says=["train.extxyz", "frame 2", *says])


def test_an_infinite_force_is_named_by_frame_and_atom(refused, tmp_path):
    bad = frame(WATER).replace("0.1 0.0 -0.1\n", "0.1 inf -0.1\n", 1)
    path = data_file(tmp_path / "train.extxyz", bad)
    refused("train", "--data", path, *SMALL, says=["train.extxyz", "frame 2", "forces", "atom 0"])


def test_a_frame_that_ends_too_early_is_named(refused, tmp_path):
    path = data_file(tmp_path / "train.extxyz", "".join(frame(WATER).splitlines(keepends=True)[:-1]), place=3)
    refused("train", "--data", path, *SMALL, says=["train.extxyz", "frame 3"])


def test_missing_files_are_named(refused, tmp_path):
    missing = tmp_path / "nowhere.extxyz"
    for option in ("--data", "--valid", "--test", "--config", "--unlabelled"):
        extra = ["--weak", "taylor"] if option == "--unlabelled" else []
        refused("train", option, missing, *SMALL, *extra, says=["nowhere.extxyz", "no such file"])


def test_data_without_structures_are_refused(refused, tmp_path):
    empty = tmp_path / "empty.extxyz"
    empty.write_text("")
    refused("train", "--data", empty, *SMALL, says=["empty.extxyz", "empty"])
    refused("train", "--data", "builtin:ethanol-gfn2/train@5:5", *SMALL, says=["no frames"])


def test_data_without_labels_are_refused(refused, tmp_path):
    path = tmp_path / "bare.extxyz"
    path.write_text("".join(frame(WATER + 0.01 * i, energy=None, forces=False) for i in range(4)))
    line = refused("train", "--data", path, *SMALL, says=["bare.extxyz", "energy"])
    assert "?energy_key=" in line


def test_a_label_that_was_asked_for_and_is_nowhere_is_refused(refused):
    line = refused(
        "train", "--data", DATA, *SMALL, "--labels", "energy,forces,stress", says=["data.labels", "stress"]
    )
    assert "energy, forces" in line


def test_one_structure_cannot_be_split(refused):
    refused("train", "--data", "builtin:ethanol-gfn2/train@:1", *SMALL, says=["data.valid", "--valid"])


def test_energies_in_another_unit_are_noticed(refused, tmp_path):
    path = tmp_path / "kcal.extxyz"
    path.write_text("".join(frame(WATER + 0.01 * i, energy=str(-48000.0 - i)) for i in range(4)))
    options = ["--set", "data.energy_references={H: -13.6, O: -2043.0}"]
    refused("train", "--data", path, *SMALL, *options, says=["frame 0", "eV/atom", "unit", "--no-check"])


def test_test_data_are_looked_at_before_the_training(refused, tmp_path):
    path = tmp_path / "test.extxyz"
    path.write_text(frame(WATER, numbers=("O", "H", "Cl")))
    refused("train", "--data", DATA, *SMALL, "--test", path, says=["test.extxyz", "frame 0", "Cl"])
    path.write_text(frame(WATER, energy=None, forces=False))
    refused("train", "--data", DATA, *SMALL, "--test", path, says=["test.extxyz", "no structure has energy"])


# ---- bad options


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--model", "nequp"], ["nequp", "did you mean nequip?"]),
        (["--preset", "tiny"], ["tiny", "small"]),
        (["--max-steps", "2", "--set", "trainer.max_steps=3"], ["trainer.max_steps", "twice: 2 and 3"]),
        (["--set", "data.train=b.extxyz"], ["data.train", "is given twice", "b.extxyz"]),
        (["--set", "optimizer.lr=0.1", "--set", "optimizer.lr=0.2"], ["optimizer.lr", "twice: 0.1 and 0.2"]),
        (["--set", "data={train: b.extxyz}"], ["data.train", "is given twice", "b.extxyz"]),
        (["--set", "model={name: mace}", "--model", "nequip"], ["model.name", "twice: nequip and mace"]),
        (
            ["--set", "trainer={max_steps: 7}", "--max-steps", "2"],
            ["trainer.max_steps", "is given twice", "2 and 7"],
        ),
        (
            ["--set", "loss={forces: {weight: 2}}", "--set", "loss.forces.weight=3"],
            ["loss.forces", "is given twice: as a whole and as loss.forces.weight"],
        ),
        (
            ["--set", "weak.labels.method=direct", "--set", "weak.labels={calculator: gfn2}"],
            ["weak.labels", "is given twice: as a whole and as weak.labels.method"],
        ),
        (["--set", "recipe={filled: [optimizer.lr]}"], ["recipe.filled", "is written by runs"]),
        (["--set", "recipe.filled=[optimizer.lr]"], ["recipe.filled", "is written by runs"]),
        (["--labels", "energy,energy"], ["data.labels", "a label is named twice"]),
        (["--labels", ""], ["data.labels"]),
        (["--log", ""], ["no logger is called ''"]),
        (["--nodes", "2"], ["trainer.nodes", "torchrun or srun"]),
        (["--set", "trainer.threads=100000"], ["trainer.threads", "1024"]),
        (["--set", "optimizer.lrr=1"], ["optimizer.lrr", "did you mean lr"]),
        (["--set", "optimiser.lr=1"], ["optimiser", "did you mean optimizer"]),
        (["--set", "model.chanels=8"], ["model.chanels", "did you mean channels"]),
        (["--set", "model.cutoff=-5"], ["cutoff", "-5", "> 0"]),
        (["--set", "model.channels=many"], ["model.channels", "many"]),
        (["--set", "optimizer.lr=-1"], ["optimizer.lr", "-1"]),
        (["--set", "optimizer.lr"], ["optimizer.lr", "key=value"]),
        (["--set", "data.train.x=1"], ["data.train"]),
        (["--set", "model.name=[1]"], ["model.name"]),
        (["--max-time", "soon"], ["trainer.max_time", "soon", "10m"]),
        (["--device", "abacus"], ["trainer.device", "abacus"]),
        (["--dtype", "float16"], ["trainer.dtype", "float16"]),
        (["--labels", "energy,mass"], ["data.labels", "mass"]),
        (["--forces", "indirect"], ["force_head", "indirect"]),
        (["--data", "builtin:ethanl"], ["ethanl"]),
        (["--data", f"{DATA}?energy=furlong"], ["energy", "fixed"]),
        (["--set", "loss.energy_per_atom.weight=0", "--set", "loss.forces.weight=0"], ["loss", "weight"]),
        (["--weak", "strong"], ["strong"]),
        (["--from", "nowhere"], ["nowhere", "no such run"]),
        (["--set", "finetune.freeze=[layers]"], ["finetune.freeze", "--from RUN"]),
        (["--resume"], ["--resume", "--out"]),
        (["--resume", "--from", "run"], ["--resume", "--from"]),
    ],
)
def test_an_option_that_cannot_be_is_refused_by_name(refused, options, says):
    refused("train", "--data", DATA, *options, says=says)


def test_a_configuration_file_that_cannot_be_read_is_named(refused, tmp_path):
    for text, says in (
        ("model: [", "not valid YAML"),
        ("- a\n- b\n", "keys and values"),
        ("optimizer: {lrr: 1}", "optimizer.lrr"),
    ):
        (tmp_path / "run.yaml").write_text(text)
        refused("train", "--config", tmp_path / "run.yaml", says=["run.yaml", says])


def test_a_run_is_not_overwritten(refused, run):
    refused("train", "--data", DATA, *SMALL, "--out", run, says=["run", "--resume"])


def test_a_folder_that_another_process_writes_to_is_refused(refused, run, tmp_path):
    from pimlip_zoo.locks import claimed

    with claimed(run):
        refused("train", "--resume", "--out", run, "--max-steps", 6, says=[str(run), "is writing to it"])
    with claimed(tmp_path / "new"):
        refused("train", "--data", DATA, *SMALL, "--out", tmp_path / "new", says=["new", "is writing to it"])


def test_a_run_is_not_resumed_with_other_options_or_data(refused, run):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    options = ["--resume", "--out", run, "--max-steps", 6]
    refused("train", *options, "--set", "model.channels=16", says=[str(run), "model.channels", "has 4", "16"])
    refused("train", *options[:3], "--max-steps", 3, says=["trainer.max_steps", "4", "3"])
    refused("train", *options, "--data", DATA.replace(":12", ":14"), says=["data.train", DATA])
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_there_is_nothing_to_resume_where_no_run_began(refused, tmp_path):
    refused("train", "--resume", "--out", tmp_path / "nowhere", says=["nowhere", "no run to resume"])


def test_a_file_is_no_run_folder(refused, tmp_path):
    (tmp_path / "taken").write_text("mine")
    refused("train", "--data", DATA, *SMALL, "--out", tmp_path / "taken", says=["taken"])
    refused("train", "--data", DATA, *SMALL, "--out", tmp_path / "taken" / "run", says=["taken"])


# ---- evaluation


def test_eval_refuses_what_cannot_be_evaluated(refused, run, tmp_path):
    test = "builtin:ethanol-gfn2/test_300K@:2"
    refused("eval", tmp_path / "nowhere", "--data", test, says=["nowhere", "no such run"])
    (tmp_path / "other").mkdir()
    refused("eval", tmp_path / "other", "--data", test, says=["other", "best.ckpt"])
    refused("eval", run, "--data", tmp_path / "nowhere.extxyz", says=["nowhere.extxyz", "no such file"])
    refused("eval", run, "--data", test, "--plot", tmp_path / "parity.gif", says=["parity.gif", ".png"])
    refused("eval", run, "--data", test, "--dtype", "half", says=["--dtype", "half"])
    unknown = tmp_path / "unknown.extxyz"
    unknown.write_text(frame(WATER) + frame(WATER, numbers=("O", "H", "Cl")))
    refused("eval", run, "--data", unknown, says=["unknown.extxyz", "frame 1", "Cl"])
    unknown.write_text(frame(WATER, energy=None, forces=False))
    refused("eval", run, "--data", unknown, says=["unknown.extxyz", "no structure has a label"])


def test_what_is_no_checkpoint_is_refused(refused, run, tmp_path):
    test = "builtin:ethanol-gfn2/test_300K@:2"
    whole = (run / "checkpoints" / "best.ckpt").read_bytes()
    broken = tmp_path / "broken.ckpt"
    for content in (b"", b"not a checkpoint", whole[: len(whole) // 2]):
        broken.write_bytes(content)
        refused("eval", broken, "--data", test, says=["broken.ckpt", "not a readable checkpoint"])
    torch.save({"weights": torch.zeros(3)}, broken)
    refused("eval", broken, "--data", test, says=["broken.ckpt", "not a checkpoint of pimlip-zoo"])
    content = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    content["pimlip_zoo"]["format_version"] = 99
    torch.save(content, broken)
    refused("eval", broken, "--data", test, says=["format version 99", "update"])


def test_models_refuses_an_unknown_name(refused):
    refused("models", "nequp", says=["nequp", "did you mean nequip?"])


# ---- no space left


@pytest.fixture
def full_disk(monkeypatch):
    """From now on checkpoints larger than nothing do not fit."""

    def fill(after=0):
        left = [after]
        save = callbacks.pl.Trainer.save_checkpoint

        def failing(trainer, path, *arguments, **options):
            if left[0] == 0:
                path.write_bytes(b"the first bytes of a checkpoint")
                raise OSError(errno.ENOSPC, "No space left on device", str(path))
            left[0] -= 1
            save(trainer, path, *arguments, **options)

        monkeypatch.setattr(callbacks.pl.Trainer, "save_checkpoint", failing)

    return fill


@pytest.mark.parametrize("written", [0, 1, 2])
def test_a_full_disk_ends_a_training_in_one_line_and_leaves_whole_files(cli, tmp_path, full_disk, written):
    full_disk(after=written)
    out = tmp_path / "run"
    result = cli("train", "--data", DATA, *SMALL, "--max-steps", 4, "--out", out)
    assert result.code == 2
    (line,) = result.err.strip().splitlines()
    assert "cannot be written: no space left on device" in line
    assert f"{out}/checkpoints/" in line
    found = sorted(path.name for path in (out / "checkpoints").iterdir())
    assert found == ["best.ckpt", "last.ckpt"][:written]
    for name in found:
        read_checkpoint(out / "checkpoints" / name)


def test_a_full_disk_leaves_the_results_of_before(refused, run, tmp_path, monkeypatch):
    out = tmp_path / "errors.json"
    before = '{"model": "the one before"}'
    out.write_text(before)

    def full(path, *arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr("pathlib.Path.write_text", full)
    test = "builtin:ethanol-gfn2/test_300K@:2"
    refused("eval", run, "--data", test, "--json", out, says=["errors.json", "no space left on device"])
    monkeypatch.undo()
    assert out.read_text() == before


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a file system")
def test_a_disk_that_is_really_full(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24k", "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a file system is not allowed here")
    try:
        command = [sys.executable, "-m", "pimlip_zoo", "train", "--data", DATA, *SMALL, "--max-steps", "2"]
        result = subprocess.run(
            [*command, "--out", disk / "run"], capture_output=True, text=True, check=False
        )
        assert result.returncode == 2, result.stderr
        (line,) = result.stderr.strip().splitlines()
        assert (
            line
            == f"pimlip-zoo: {disk}/run/checkpoints/best.ckpt: cannot be written: no space left on device"
        )
        assert not list((disk / "run" / "checkpoints").iterdir())
    finally:
        subprocess.run(["umount", disk], check=True)


def test_the_log_holds_every_line_that_was_printed(cli, tmp_path):
    arguments = ("--data", "builtin:ethanol-gfn2/train@:12", "--test", "builtin:ethanol-gfn2/test_300K@:3")
    small = ("--set", "model.channels=4", "--max-steps", 4, "--set", "trainer.valid_every=2")
    result = cli("train", *arguments, *small, "--out", tmp_path / "run")
    assert result.code == 0, result
    written = []
    for line in (tmp_path / "run" / "log.txt").read_text().splitlines():
        stamp = re.match(r"[-0-9]{10} [:0-9]{8},[0-9]{3} (?P<level>[A-Z]+) (?P<text>.*)", line)
        warned = stamp is not None and stamp["level"] != "INFO"
        written.append(line if stamp is None else f"{'warning: ' if warned else ''}{stamp['text']}")
    printed = [line.rstrip() for line in result.out.splitlines()]
    assert len(printed) > 20
    assert written == printed
