"""Runs end when they should: without improvement, out of time, at the last step."""

import csv
import time

import pytest
import torch

from pimlip_zoo import experiment
from pimlip_zoo.config import load_config, parse_settings
from pimlip_zoo.training.checkpoint import load_potential

SETTINGS = [
    "data.train=builtin:ethanol-gfn2/train@:20",
    "data.valid=builtin:ethanol-gfn2/valid@:5",
    "model.channels=4",
    "model.radial_hidden=[4]",
]


def run(folder, *more):
    return experiment.train(experiment.prepare(load_config(None, parse_settings([*SETTINGS, *more]))), folder)


def test_a_run_that_no_longer_improves_stops_early(tmp_path):
    """A learning rate of almost nothing improves nothing that float32 can see."""
    outcome = run(
        tmp_path,
        "optimizer.lr=1e-12",
        "trainer.patience=2",
        "trainer.valid_every=3",
        "trainer.max_steps=300",
        "trainer.ema_decay=0",
    )
    assert outcome.steps < 30
    assert (tmp_path / "checkpoints" / "best.ckpt").exists()


def test_a_run_ends_when_its_time_is_over(tmp_path):
    started = time.monotonic()
    outcome = run(tmp_path, "trainer.max_time=2s", "trainer.max_steps=100000", "trainer.valid_every=20")
    assert outcome.steps < 100000
    assert time.monotonic() - started < 60
    assert load_potential(tmp_path).species == ("H", "C", "O")


def test_the_last_step_is_validated_and_the_best_step_kept(tmp_path):
    outcome = run(tmp_path, "trainer.max_steps=7", "trainer.valid_every=4")
    with (tmp_path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert outcome.steps == 7
    assert [row["step"] for row in rows] == ["4", "7"]
    best = min(rows, key=lambda row: float(row["valid_energy_rmse"]) + float(row["valid_forces_rmse"]))
    content = torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)
    assert content["global_step"] == int(best["step"])


def test_losses_of_steps_reach_table_and_loggers(tmp_path, monkeypatch):
    """With a logger that writes a file in the place of tensorboard's."""
    from lightning.pytorch import loggers

    from pimlip_zoo.training import module

    monkeypatch.setattr(module, "LOGGED_EVERY", 2)
    monkeypatch.setattr(loggers, "TensorBoardLogger", loggers.CSVLogger)
    run(tmp_path, "trainer.max_steps=5", "trainer.valid_every=5", "trainer.tensorboard=true")
    with (tmp_path / "metrics.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert float(row["loss"]) > 0
    with next(tmp_path.rglob("tensorboard/metrics.csv")).open() as file:
        logged = [r for r in csv.DictReader(file) if r.get("loss")]
    assert [r["step"] for r in logged] == ["1", "3"]
    assert all(float(r["loss"]) > 0 and float(r["loss_forces"]) > 0 for r in logged)


def test_training_leaves_the_default_precision_of_torch_alone(tmp_path):
    before = torch.get_default_dtype()
    run(tmp_path, "trainer.max_steps=2", "trainer.dtype=float64")
    assert torch.get_default_dtype() == before
    assert load_potential(tmp_path).model.dtype == torch.float64


@pytest.mark.parametrize("text", ["", "10", "m", "-3m", "1 h"])
def test_a_time_without_a_unit_is_refused(text):
    from pimlip_zoo.errors import InputError

    with pytest.raises(InputError, match="10m"):
        experiment.parse_duration(text)
