"""``eval --stability`` says what test errors do not."""

import sys

import pytest
import torch

from pimlip_zoo.cli import main
from pimlip_zoo.models.potential import Potential
from pimlip_zoo.registry import get_model
from pimlip_zoo.training.checkpoint import KEY, describe


@pytest.fixture
def run(tmp_path):
    torch.manual_seed(0)
    info = get_model("nequip")
    config = info.configure(channels=4, radial_hidden=(4,), cutoff=3.0, avg_num_neighbors=6.0)
    potential = Potential(info.model(config, ("H", "C", "O")), scale=1e-3)
    weights = {f"potential.{name}": value for name, value in potential.state_dict().items()}
    torch.save({KEY: describe(potential), "state_dict": weights}, tmp_path / "model.ckpt")
    return tmp_path / "model.ckpt"


def test_the_gate_speaks_after_the_errors(run, monkeypatch, capsys):
    """Random weights without scale: nothing holds the molecule together, and nothing pushes atoms apart."""
    arguments = ["pimlip-zoo", "eval", str(run), "--data", "builtin:ethanol-gfn2/test_300K@:2", "--stability"]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    printed = capsys.readouterr().out
    assert "forces MAE" in printed
    assert "not stable" in printed
    assert "dynamics:" in printed
