"""Loggers by one option: they get losses, errors and the configuration; one that is not there is refused at once."""

import pytest
from lightning.pytorch import loggers
from lightning.pytorch.loggers.logger import DummyLogger

from pimlip_zoo import experiment
from pimlip_zoo.config import load_config, parse_settings
from pimlip_zoo.errors import InputError
from pimlip_zoo.experiment import loggers as ours
from pimlip_zoo.experiment.loggers import logger_names
from pimlip_zoo.training import module

SETTINGS = [
    "data.train=builtin:ethanol-gfn2/train@:12",
    "model.channels=4",
    "model.radial_hidden=[4]",
    "trainer.max_steps=4",
    "trainer.valid_every=2",
]
CLASSES = {"wandb": "WandbLogger", "mlflow": "MLFlowLogger", "tensorboard": "TensorBoardLogger"}


def configured(*more):
    return load_config(None, parse_settings([*SETTINGS, *more]))


@pytest.fixture
def recorded(monkeypatch):
    """What each logger was made with, and what it got."""
    kept = {}

    for name, cls in CLASSES.items():

        def make(*args, kind=name, **options):
            logger = DummyLogger()
            kept[kind] = {"options": options, "metrics": {}, "config": None}
            logger.log_metrics = lambda metrics, step=None: kept[kind]["metrics"].update(metrics)
            logger.log_hyperparams = lambda config, *_: kept[kind].update(config=config)
            return logger

        monkeypatch.setattr(loggers, cls, make)
    monkeypatch.setattr(ours, "find_spec", lambda name: name)
    monkeypatch.setattr(module, "LOGGED_EVERY", 2)
    return kept


def test_several_loggers_get_losses_errors_and_the_configuration(recorded, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    run = experiment.prepare(configured("trainer.loggers=[wandb, mlflow]"))
    experiment.train(run, tmp_path / "run")
    assert set(recorded) == {"wandb", "mlflow"}
    assert recorded["wandb"]["options"]["project"] == "mine"
    assert recorded["mlflow"]["options"]["run_name"] == "run"
    for one in recorded.values():
        assert {"loss", "loss_forces", "valid_forces_mae", "valid_energy_rmse"} <= set(one["metrics"])
        assert one["config"]["optimizer"]["name"] == "muon"


def test_older_configurations_say_tensorboard_by_itself():
    assert logger_names(configured("trainer.tensorboard=true", "trainer.loggers=[wandb, tensorboard]")) == [
        *("wandb", "tensorboard")
    ]
    assert logger_names(configured()) == []


def test_a_logger_that_is_not_there_is_refused_before_anything_is_done(monkeypatch):
    monkeypatch.setattr(ours, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"wandb is not installed .*pip install 'pimlip-zoo\[wandb\]'"):
        experiment.prepare(configured("trainer.loggers=[wandb]"))
    with pytest.raises(InputError, match=r"no logger is called 'wandbb' .*did you mean wandb"):
        experiment.prepare(configured("trainer.loggers=[wandbb]"))
