"""The loggers' own packages, where they are installed: a training arrives there whole."""

import math
import os

import pytest

from pimlip_zoo import experiment
from pimlip_zoo.config import load_config, parse_settings
from pimlip_zoo.errors import InputError
from pimlip_zoo.training import module

SETTINGS = [
    "data.train=builtin:ethanol-gfn2/train@:12",
    "model.channels=4",
    "model.radial_hidden=[4]",
    "trainer.max_steps=4",
    "trainer.valid_every=2",
]


def trained(folder, name, monkeypatch):
    monkeypatch.setattr(module, "LOGGED_EVERY", 2)
    config = load_config(None, parse_settings([*SETTINGS, f"trainer.loggers=[{name}]"]))
    experiment.train(experiment.prepare(config), folder)


def test_tensorboard_has_losses_and_errors(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trained(tmp_path / "run", "tensorboard", monkeypatch)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert {"loss", "loss_forces", "valid_forces_mae", "valid_energy_rmse"} <= set(events.Tags()["scalars"])
    assert all(math.isfinite(event.value) for event in events.Scalars("valid_forces_mae"))


def test_mlflow_keeps_them_in_a_folder_beside_the_runs(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # so that it is what it was after the test
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE")
    trained(tmp_path / "run", "mlflow", monkeypatch)
    assert "MLFLOW_ALLOW_FILE_STORE" not in os.environ, "of the training alone"
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # for the reading below
    client = mlflow.MlflowClient(f"file:{tmp_path / 'mlruns'}")
    (run,) = client.search_runs([client.get_experiment_by_name("pimlip-zoo").experiment_id])
    assert (run.info.run_name, run.info.status) == ("run", "FINISHED")
    assert {"loss_forces", "valid_forces_mae"} <= set(run.data.metrics)
    assert run.data.params["optimizer/name"] == "muon"


def test_wandb_works_offline(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    trained(tmp_path / "run", "wandb", monkeypatch)
    wandb.finish()
    (file,) = (tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb")
    content = file.read_bytes()
    for name in (b"valid_forces_mae", b"loss_forces", b"muon"):
        assert name in content


def test_a_server_that_is_not_there_is_named(tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(InputError, match=r"mlflow cannot be opened: .*127\.0\.0\.1.*MLFLOW_TRACKING_URI"):
        trained(tmp_path / "run", "mlflow", monkeypatch)
