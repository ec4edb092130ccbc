"""Where losses and errors go besides ``metrics.csv``: TensorBoard, Weights & Biases, MLflow, by name."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pimlip_zoo.config import RunConfig
from pimlip_zoo.errors import InputError
from pimlip_zoo.registry import Registry

__all__ = ["LOGGERS", "LoggerKind", "check_loggers", "logger_names", "make_loggers"]


@dataclass(frozen=True)
class LoggerKind:
    """One kind of logger of Lightning's."""

    packages: tuple[str, ...]
    """Any of them has to be installed."""
    install: str
    """How to get it."""
    make: Callable[[Path], Any]
    """From the run folder."""


LOGGERS: Registry[LoggerKind] = Registry("logger", "pimlip_zoo.loggers")
"""By the name that ``--log`` takes."""


def _tensorboard(folder: Path) -> Any:
    from lightning.pytorch import loggers

    return loggers.TensorBoardLogger(folder, name="", version="tensorboard")


def _wandb(folder: Path) -> Any:
    """Its own variables name the project, the account and whether it is offline: WANDB_PROJECT, WANDB_MODE, ..."""
    from lightning.pytorch import loggers

    project = os.environ.get("WANDB_PROJECT", "pimlip-zoo")
    return loggers.WandbLogger(name=folder.resolve().name, project=project, save_dir=folder)


def _mlflow(folder: Path) -> Any:
    """To MLFLOW_TRACKING_URI, or into the folder ``mlruns`` beside the runs."""
    from lightning.pytorch import loggers

    place = os.environ.get("MLFLOW_TRACKING_URI") or f"file:{folder.resolve().parent / 'mlruns'}"
    experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", "pimlip-zoo")
    return loggers.MLFlowLogger(
        experiment_name=experiment, run_name=folder.resolve().name, tracking_uri=place
    )


for _name, _kind in {
    "tensorboard": LoggerKind(
        ("tensorboard", "tensorboardX"), "pip install 'pimlip-zoo[tensorboard]'", _tensorboard
    ),
    "wandb": LoggerKind(("wandb",), "pip install 'pimlip-zoo[wandb]'", _wandb),
    "mlflow": LoggerKind(("mlflow",), "pip install 'pimlip-zoo[mlflow]'", _mlflow),
}.items():
    LOGGERS.add(_name, _kind, _kind.make)


def logger_names(config: RunConfig) -> list[str]:
    """The loggers of a run, each once."""
    section = config.trainer
    return list(dict.fromkeys([*section.loggers, *(["tensorboard"] if section.tensorboard else [])]))


def check_loggers(names: Sequence[str]) -> None:
    """Refuse what could not be written to, before anything is done.

    Raises:
        InputError: for an unknown logger, or one that is not installed.
    """
    for name in names:
        kind = LOGGERS.get(name)
        if not any(find_spec(package) for package in kind.packages):
            raise InputError(
                f"{' or '.join(kind.packages)} is not installed", key="trainer.loggers", mend=kind.install
            )


def make_loggers(config: RunConfig, folder: Path) -> list[Any]:
    """The loggers of a run; those that keep options of runs get the configuration."""
    made = []
    for name in logger_names(config):
        logger = LOGGERS.get(name).make(folder)
        if name != "tensorboard":  # which would show them beside a metric that nobody has
            logger.log_hyperparams(config.model_dump(mode="json"))
        made.append(logger)
    return made
