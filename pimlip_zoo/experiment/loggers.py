"""Where losses and errors go besides ``metrics.csv``: TensorBoard, Weights & Biases, MLflow, by name."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pimlip_zoo.config import RunConfig
from pimlip_zoo.errors import InputError, reason_of
from pimlip_zoo.registry import Registry

log = logging.getLogger("pimlip_zoo")


@dataclass(frozen=True)
class LoggerKind:
    """One kind of logger of Lightning's."""

    packages: tuple[str, ...]
    """Any of them has to be installed; none: it needs no further one."""
    install: str
    """How to get it."""
    make: Callable[[Path], Any]
    """From the run folder."""
    hint: str = "train without it"
    """What to do when it cannot be opened."""


LOGGERS: Registry[LoggerKind] = Registry("logger", "pimlip_zoo.loggers")
"""By the name that ``--log`` takes."""


def register_logger(
    name: str, *, packages: Sequence[str] = (), install: str = "", hint: str = "train without it"
) -> Callable[[Callable[[Path], Any]], Callable[[Path], Any]]:
    """Decorator that makes a function of the run folder, which returns a logger of Lightning's, known under a name.

    Args:
        name: what ``--log`` takes.
        packages: any of which has to be installed; none: it needs no further one.
        install: how to get it.
        hint: what to do when it cannot be opened.

    Raises:
        InputError: when another one has the name already.
    """
    return LOGGERS.registering(name, lambda make: LoggerKind(tuple(packages), install, make, hint))


@register_logger(
    "tensorboard",
    packages=("tensorboard", "tensorboardX"),
    install="pip install 'pimlip-zoo[tensorboard]'",
)
def _tensorboard(folder: Path) -> Any:
    from lightning.pytorch import loggers

    return loggers.TensorBoardLogger(folder, name="", version="tensorboard")


@register_logger(
    "wandb",
    packages=("wandb",),
    install="pip install 'pimlip-zoo[wandb]'",
    hint="run `wandb login`, or set WANDB_MODE=offline",
)
def _wandb(folder: Path) -> Any:
    """Its own variables name the project, the account and whether it is offline: WANDB_PROJECT, WANDB_MODE, ..."""
    from lightning.pytorch import loggers

    project = os.environ.get("WANDB_PROJECT", "pimlip-zoo")
    return loggers.WandbLogger(name=folder.resolve().name, project=project, save_dir=folder)


@register_logger(
    "mlflow",
    packages=("mlflow",),
    install="pip install 'pimlip-zoo[mlflow]'",
    hint="look at MLFLOW_TRACKING_URI, or unset it",
)
def _mlflow(folder: Path) -> Any:
    """To MLFLOW_TRACKING_URI, or into the folder ``mlruns`` beside the runs.

    MLflow from version 3 on writes into a folder only where that is allowed; its databases need packages that
    mlflow-skinny does not bring.
    """
    from lightning.pytorch import loggers

    place = os.environ.get("MLFLOW_TRACKING_URI")
    if not place:
        place = f"file:{folder.resolve().parent / 'mlruns'}"
    waits = " (a server that does not answer is tried for some minutes)" if place.startswith("http") else ""
    log.info("mlflow: %s%s", place, waits)
    experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", "pimlip-zoo")
    with _folders_allowed(place):
        logger = loggers.MLFlowLogger(
            experiment_name=experiment, run_name=folder.resolve().name, tracking_uri=place
        )
        _ = logger.experiment  # opens the store and the run; MLflow does not ask later
    return logger


@contextmanager
def _folders_allowed(place: str) -> Iterator[None]:
    """MLflow's word for it, where it is needed and the user has not decided; what was there before comes back."""
    name = "MLFLOW_ALLOW_FILE_STORE"
    if not place.startswith("file:") or name in os.environ:
        yield
        return
    os.environ[name] = "true"
    try:
        yield
    finally:
        os.environ.pop(name, None)


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
        kind = LOGGERS.get(name, key="trainer.loggers")
        if kind.packages and not any(find_spec(package) for package in kind.packages):
            raise InputError(
                f"{' or '.join(kind.packages)} is not installed", key="trainer.loggers", hint=kind.install
            )


def make_loggers(config: RunConfig, folder: Path) -> list[Any]:
    """The loggers of a run; those that keep options of runs get the configuration.

    Raises:
        InputError: for one that cannot be opened: no account, no server, a folder that cannot be written to.
    """
    made = []
    for name in logger_names(config):
        kind = LOGGERS.get(name)
        try:
            logger = kind.make(folder)
            if name != "tensorboard":  # which would show them beside a metric that nobody has
                logger.log_hyperparams(config.model_dump(mode="json"))
        except Exception as error:  # of any package that is used here
            raise InputError(
                f"{name} cannot be opened: {reason_of(error)}", key="trainer.loggers", hint=kind.hint
            ) from error
        made.append(logger)
    return made
