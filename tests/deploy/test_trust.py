"""A model file that names a function has it called only when the user trusts the file."""

import sys
import time

import numpy as np
import pytest
import torch
from ase import Atoms
from typer.testing import CliRunner

import pimlip_zoo
from pimlip_zoo.datasets.frame import Frame
from pimlip_zoo.errors import InputError
from pimlip_zoo.evaluation import evaluate_run
from pimlip_zoo.models.potential import Potential
from pimlip_zoo.registry import get_model
from pimlip_zoo.training.checkpoint import KEY, baseline_of, describe, load_potential
from pimlip_zoo.weak_labels.calculators import find_cheap_calculator
from pimlip_zoo.weak_labels.ensemble import predict_labels

MODULE = """
from pathlib import Path
from ase.calculators.emt import EMT
Path("imported").touch()
def make():
    return EMT()
"""


def checkpoint(path, baseline):
    torch.manual_seed(0)
    info = get_model("nequip")
    config = info.configure(channels=2, radial_hidden=(4,), cutoff=3.0, avg_num_neighbors=6.0, l_max=1)
    potential = Potential(info.model(config, ("H", "O")))
    weights = {f"potential.{name}": value for name, value in potential.state_dict().items()}
    torch.save({KEY: {**describe(potential), "summary": {"baseline": baseline}}, "state_dict": weights}, path)
    return path


def water():
    return Atoms("OH2", [[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])


@pytest.fixture
def named(tmp_path, monkeypatch):
    """A checkpoint that names a function of a file in the working folder."""
    (tmp_path / "payload.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PIMLIP_ZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend("")
    monkeypatch.delitem(sys.modules, "payload", raising=False)
    atoms = water()
    atoms.info["energy"], atoms.arrays["forces"] = 1.0, np.zeros((3, 3))
    atoms.write("data.extxyz")
    yield checkpoint(tmp_path / "model.ckpt", {"calculator": "payload:make", "version": "1"})
    sys.modules.pop("payload", None)


def test_a_function_that_a_checkpoint_names_is_called_only_with_trust(named, tmp_path):
    with pytest.raises(InputError, match=r"payload:make.*trust=True"):
        pimlip_zoo.calculator(named)
    with pytest.raises(InputError, match="payload:make"):
        pimlip_zoo.calculator(
            named, checkpoint(tmp_path / "b.ckpt", {"calculator": "payload:make", "version": "2"})
        )
    assert not (tmp_path / "imported").exists()
    atoms = water()
    atoms.calc = pimlip_zoo.calculator(named, trust=True)
    assert (tmp_path / "imported").exists()
    assert np.isfinite(atoms.get_potential_energy())


@pytest.mark.parametrize("command", ["eval", "md"])
def test_the_commands_call_it_only_with_the_option(command, named, tmp_path):
    from pimlip_zoo.cli.eval import app as evaluate
    from pimlip_zoo.cli.md import app as simulate

    app, options = {
        "eval": (evaluate, ["--data", "data.extxyz"]),
        "md": (simulate, ["--structure", "data.extxyz", "--steps", "1", "--out", "md"]),
    }[command]
    result = CliRunner().invoke(app, [str(named), *options])
    assert isinstance(result.exception, InputError)
    assert "--trust" in str(result.exception)
    assert not (tmp_path / "imported").exists()
    result = CliRunner().invoke(app, [str(named), *options, "--trust"])
    assert result.exit_code == 0 or command == "md", (
        result.exception
    )  # dynamics of a random model need not be stable
    assert (tmp_path / "imported").exists()


def test_a_training_trusts_what_its_configuration_named_and_nothing_else(named, tmp_path):
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    named.rename(folder / "checkpoints" / "best.ckpt")
    for other in (None, "emt", "payload:other"):
        with pytest.raises(InputError, match="payload:make"):
            evaluate_run(folder, {"data": "data.extxyz"}, trusted=other)
    assert not (tmp_path / "imported").exists()
    assert evaluate_run(folder, {"data": "data.extxyz"}, trusted="payload:make")["data"]["energy"] is not None


def test_the_calculators_of_the_package_need_no_trust(tmp_path):
    path = checkpoint(tmp_path / "model.ckpt", {"calculator": "emt", "version": "1"})
    atoms = water()
    atoms.calc = pimlip_zoo.calculator(path)
    assert np.isfinite(atoms.get_potential_energy())


@pytest.mark.parametrize("name", ["os:getcwd", "pimlip_zoo.weak_labels.calculators:_emt", "emt:make", "EMT"])
def test_no_other_name_passes_for_a_calculator_of_the_package(name):
    with pytest.raises(InputError):
        find_cheap_calculator(name)


@pytest.mark.parametrize("baseline", ["emt", {"version": "1"}, {"calculator": ["emt"]}, 3])
def test_a_baseline_that_is_no_name_is_refused(baseline, tmp_path):
    path = checkpoint(tmp_path / "model.ckpt", baseline)
    for read in (baseline_of, load_potential):
        with pytest.raises(InputError, match=r"model\.ckpt.*baseline"):
            read(path)


def beside(folder, calculator):
    return checkpoint(folder / "model.ckpt", {"calculator": calculator, "version": "1"})


def test_a_native_model_that_a_file_names_is_not_run_unless_the_file_is_trusted(tmp_path):
    """It is a program."""
    (tmp_path / "evil.pimlip").write_bytes(b"a program")
    path = beside(tmp_path, f"run:{tmp_path / 'evil.pimlip'}")
    with pytest.raises(InputError, match=r"names .*evil\.pimlip, which is no checkpoint .*--trust"):
        pimlip_zoo.calculator(path)
    with pytest.raises(InputError, match="evil"):  # it is looked at
        pimlip_zoo.calculator(path, trust=True)


def test_a_file_that_names_itself_as_its_cheap_level_is_refused_at_once(tmp_path):
    path = beside(tmp_path, f"run:{tmp_path / 'model.ckpt'}")
    started = time.process_time()
    with pytest.raises(InputError, match=r"is a correction to .*model\.ckpt, and so on"):
        pimlip_zoo.calculator(path)
    assert time.process_time() - started < 2


def test_a_potential_that_comes_with_the_package_may_be_the_cheap_level(tmp_path):
    atoms = water()
    energies = []
    for run in (beside(tmp_path, "run:builtin:organic-gfn2"), "builtin:organic-gfn2"):
        atoms.calc = pimlip_zoo.calculator(run)
        energies.append(atoms.get_potential_energy())
    correction = load_potential(tmp_path / "model.ckpt", difference=True)
    (own,) = predict_labels(correction, [Frame(atoms.numbers, atoms.positions)])
    assert energies[0] - energies[1] == pytest.approx(own.energy, abs=1e-6)
