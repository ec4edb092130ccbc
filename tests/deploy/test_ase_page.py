"""The code of docs/guide/ase.md runs as it stands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from pimlip_zoo.cli import app
from pimlip_zoo.models.nequip import NequIP, NequIPConfig
from pimlip_zoo.models.potential import Potential
from pimlip_zoo.training.checkpoint import KEY, describe

PAGE = Path(__file__).parents[2] / "docs" / "guide" / "ase.md"


def save_run(folder, seed):
    torch.manual_seed(seed)
    config = NequIPConfig(num_layers=1, l_max=1, channels=4, cutoff=3.5, avg_num_neighbors=8.0)
    potential = Potential(NequIP(config, ("H", "C", "O")), scale=0.01)
    weights = {f"potential.{name}": value for name, value in potential.state_dict().items()}
    (folder / "checkpoints").mkdir(parents=True)
    torch.save({KEY: describe(potential), "state_dict": weights}, folder / "checkpoints" / "best.ckpt")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for number in (1, 2):
        save_run(tmp_path / "runs" / f"nequip-{number}", number)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_python_of_the_page_runs_from_top_to_bottom(folder):
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(blocks) >= 5
    names = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    assert names["matrix"].shape == (27, 27)
    assert abs(names["matrix"] - names["numerical"]).max() < 0.05 * abs(names["matrix"]).max() + 1e-3
    assert len(names["frequencies"]) == 27
    assert (folder / "md" / "result.json").exists()


def test_the_commands_of_the_page_run(folder):
    commands = re.findall(r"^pimlip-zoo .*$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert commands
    for command in commands:
        result = CliRunner().invoke(app, [*shlex.split(command)[1:], "--temperature", "5"])
        assert result.exit_code == 0, result.output
    assert (folder / "runs" / "nequip-1" / "md-1" / "trajectory.extxyz").exists()
