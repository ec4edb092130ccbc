"""Lightning's trainer, as the configuration wants it."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pimlip_zoo.config import RunConfig, TrainerSection
from pimlip_zoo.errors import InputError, did_you_mean
from pimlip_zoo.experiment.loggers import check_loggers, logger_names, make_loggers
from pimlip_zoo.training.schedule import RunClock
from pimlip_zoo.written import parse_duration

if TYPE_CHECKING:
    import lightning.pytorch as pl


def check_trainer(config: RunConfig) -> None:
    """Refuse what Lightning would refuse after the run folder is made."""
    if config.trainer.max_time is not None:
        parse_duration(config.trainer.max_time)
    check_loggers(logger_names(config))
    device = config.trainer.device
    if device in ("auto", "cpu"):
        return  # importing Lightning takes seconds, and there are better times for it
    from lightning.pytorch.accelerators import AcceleratorRegistry

    known = {"auto", "gpu", *AcceleratorRegistry.available_accelerators()}
    if device not in known:
        raise InputError(
            f"no device is called {device!r}", key="trainer.device", hint=did_you_mean(device, known)
        )
    accelerator = "cuda" if device == "gpu" and not torch.backends.mps.is_available() else device
    if accelerator in AcceleratorRegistry and not AcceleratorRegistry.get(accelerator).is_available():
        raise InputError(f"this machine has no {device}", key="trainer.device", hint="give auto or cpu")


@contextmanager
def switches(section: TrainerSection) -> Iterator[None]:
    """What a training sets in the whole process: its threads, how floats are multiplied, how much Lightning says."""
    import lightning.pytorch  # noqa: F401  # its first import sets the level of its log

    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    log = logging.getLogger("lightning.pytorch")
    level = log.level
    try:
        if section.threads is not None:
            torch.set_num_threads(section.threads)
        torch.set_float32_matmul_precision("high" if section.products == "tf32" else "highest")
        # Chatter about accelerators and defaults is not the user's business.
        log.setLevel(logging.WARNING)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning.*")
            yield
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)
        log.setLevel(level)


def make_trainer(
    config: RunConfig,
    folder: Path,
    clock: RunClock,
    seconds: float | None = None,
    *,
    some_unused: bool = False,
) -> pl.Trainer:
    """The trainer with the callbacks that write the run folder.

    Args:
        config: of the run.
        folder: of the run.
        clock: how far the run is; kept by a callback where time is limited, or where validations lower the rate.
        seconds: that this training has; None: what the configuration says.
        some_unused: some weights may have no part in a step, which several ranks have to look for.
    """
    import sys

    import lightning.pytorch as pl

    from pimlip_zoo.experiment.record import CONFIG
    from pimlip_zoo.training.callbacks import (
        AveragedWeights,
        GracefulStop,
        KeepBest,
        KeepLast,
        MetricsTable,
        Patience,
        Plateau,
        StaysInItsFolder,
        TimeLimit,
    )
    from pimlip_zoo.training.module import LOGGED_EVERY
    from pimlip_zoo.training.progress import PlainProgress, Progress

    section = config.trainer
    last = folder / "checkpoints" / "last.ckpt"
    terminal = sys.stderr.isatty()
    if seconds is None and section.max_time is not None:
        seconds = parse_duration(section.max_time).total_seconds()
    schedule = config.schedule
    callbacks: list[Any] = []
    if seconds is not None:
        highest = math.inf if schedule.highest_lr is None else schedule.highest_lr / config.optimizer.lr
        callbacks.append(TimeLimit(seconds, clock, schedule.shorter_power, max(highest, 1.0)))
    if schedule.name == "plateau":
        callbacks.append(
            Plateau(schedule.plateau_factor, schedule.plateau_patience, schedule.plateau_threshold, clock)
        )
    callbacks += [
        StaysInItsFolder(folder / CONFIG),
        MetricsTable(folder / "metrics.csv"),
        KeepBest(
            dirpath=folder / "checkpoints",
            filename="best",
            monitor=None if section.keep == "last" else "valid_score",
            save_top_k=1,
            enable_version_counter=False,
            anew=None
            if config.loss.late.start is None
            else partial(clock.has_reached, config.loss.late.start),
        ),
        KeepLast(last),
        GracefulStop(last),
        Progress(clock) if terminal else PlainProgress(clock),
    ]
    if section.ema_decay > 0:
        callbacks.insert(0, AveragedWeights(section.ema_decay))
    if section.patience is not None:
        callbacks.append(Patience("valid_score", patience=section.patience))
    loggers = make_loggers(config, folder)
    return pl.Trainer(
        accelerator="auto" if section.device == "auto" else section.device,
        devices=section.devices,
        num_nodes=section.nodes,
        strategy="ddp_find_unused_parameters_true" if some_unused else "auto",
        max_steps=section.max_steps,
        val_check_interval=min(section.valid_every, section.max_steps) * section.accumulate,
        accumulate_grad_batches=section.accumulate,
        precision="bf16-mixed" if section.products == "bf16" else None,
        check_val_every_n_epoch=None,
        gradient_clip_val=section.gradient_clip,
        num_sanity_val_steps=0,
        inference_mode=False,
        use_distributed_sampler=False,
        logger=loggers or False,
        callbacks=callbacks,
        enable_model_summary=False,
        enable_progress_bar=terminal,
        log_every_n_steps=LOGGED_EVERY,
        default_root_dir=folder,
    )
