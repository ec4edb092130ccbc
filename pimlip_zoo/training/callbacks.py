"""What happens around the steps: averaged weights, a table of metrics, stopping when told to."""

from __future__ import annotations

import csv
import signal
import time
from io import StringIO
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import (
    Callback,
    Checkpoint,
    EarlyStopping,
    ModelCheckpoint,
    RichProgressBar,
    WeightAveraging,
)
from torch import Tensor

from pimlip_zoo.files import append, replacing

__all__ = [
    "AveragedWeights",
    "GracefulStop",
    "Interrupted",
    "KeepBest",
    "KeepLast",
    "MetricsTable",
    "Patience",
    "PlainProgress",
    "Progress",
    "validation_line",
]


class AveragedWeights(WeightAveraging):
    """Exponential moving average of the weights; validated, saved as the model's, and exported.

    After n updates the decay is ``min(decay, (1 + n) / (10 + n))``: short runs are not held back by their start.

    Args:
        decay: towards which it grows.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay

        @torch.no_grad()
        def average(averaged: list[Tensor], current: list[Tensor], count: Tensor | int) -> None:
            n = int(count)
            weight = min(decay, (1.0 + n) / (10.0 + n))
            for averages, values in _by_dtype(averaged, current):
                torch._foreach_lerp_(averages, values, 1.0 - weight)

        super().__init__(use_buffers=False, multi_avg_fn=average)


def _by_dtype(averaged: list[Tensor], current: list[Tensor]) -> list[tuple[list[Tensor], list[Tensor]]]:
    groups: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
    for a, b in zip(averaged, current, strict=True):
        if a.is_floating_point():
            pair = groups.setdefault(a.dtype, ([], []))
            pair[0].append(a)
            pair[1].append(b)
    return list(groups.values())


class MetricsTable(Callback):
    """Appends a row to ``metrics.csv`` after each validation.

    Args:
        path: the file; a resumed run goes on writing to it.
    """

    COLUMNS = (
        "step",
        "seconds",
        "learning_rate",
        "loss",
        "valid_energy_mae",
        "valid_energy_rmse",
        "valid_forces_mae",
        "valid_forces_rmse",
        "valid_stress_mae",
        "valid_stress_rmse",
    )

    def __init__(self, path: Path) -> None:
        self.path = path
        self._start = time.monotonic()
        self._before = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Drop rows of steps that are done again, because the run was killed before their checkpoint was written."""
        if not trainer.is_global_zero or not self.path.exists():
            return
        with self.path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        kept = [
            row for row in rows if (row["step"] or "").isdigit() and int(row["step"]) <= trainer.global_step
        ]
        if len(kept) < len(rows):
            with replacing(self.path) as temporary, temporary.open("w", newline="") as file:
                writer = csv.DictWriter(file, self.COLUMNS, extrasaction="ignore")
                writer.writeheader()
                writer.writerows(kept)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write a row."""
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        values = trainer.callback_metrics
        row: dict[str, Any] = {
            "step": trainer.global_step,
            "seconds": round(self.seconds, 2),
            "learning_rate": trainer.optimizers[0].param_groups[0]["lr"] if trainer.optimizers else "",
        }
        row.update({name: float(values[name]) for name in self.COLUMNS if name in values})
        text = StringIO(newline="")
        writer = csv.DictWriter(text, self.COLUMNS)
        if not self.path.exists():
            writer.writeheader()
        writer.writerow(row)
        append(self.path, text.getvalue())

    @property
    def seconds(self) -> float:
        """Time trained so far, over all resumptions."""
        return self._before + time.monotonic() - self._start

    def state_dict(self) -> dict[str, Any]:
        """Time so far."""
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self._before = state_dict["seconds"]


class Interrupted(Exception):  # noqa: N818  (it is no error)
    """A signal ended the training, after its checkpoint was written.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class GracefulStop(Callback):
    """On Ctrl-C or SIGTERM: finish the step, write ``last.ckpt``, stop.

    Args:
        last: where the checkpoint goes.
    """

    def __init__(self, last: Path) -> None:
        self.last = last
        self.signal: int | None = None
        self._previous: dict[int, Any] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Listen, in place of Lightning's own handlers."""
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._previous[number] = signal.signal(number, self._receive)
            except ValueError:  # not the main thread
                return

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:  # asked twice: now
            raise KeyboardInterrupt
        self.signal = number

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop if a signal came in, unless a validation comes first: it writes the checkpoint."""
        stepped = (batch_idx + 1) % trainer.accumulate_grad_batches == 0  # no gradients are waiting
        if self.signal is not None and stepped and not _validates(trainer):
            save_checkpoint(trainer, self.last)
            raise Interrupted(self.signal)

    def on_train_batch_start(self, trainer: pl.Trainer, *args: object) -> None:
        """Stop after the validation."""
        if self.signal is not None and trainer.global_step > 0 and _validates(trainer):
            raise Interrupted(self.signal)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Leave the signals as they were."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()


def _validates(trainer: pl.Trainer) -> bool:
    """Whether a validation follows the step that was just done."""
    step, batches = trainer.global_step, int(trainer.val_check_batch or 1)
    every = max(batches // trainer.accumulate_grad_batches, 1)
    return trainer.should_stop or step >= trainer.max_steps or step % every == 0


class KeepBest(ModelCheckpoint):
    """Lightning's, but a file that cannot be written leaves the one before it as it was."""

    def _save_checkpoint(self, trainer: pl.Trainer, filepath: str) -> None:
        save_checkpoint(trainer, Path(filepath))
        self._last_global_step_saved = trainer.global_step
        self._last_checkpoint_saved = filepath


class KeepLast(Checkpoint):
    """Writes ``last.ckpt`` after each validation, and has the last step validated, too.

    A ``Checkpoint``, so that Lightning calls it after the other callbacks: the file has their new state.

    Args:
        path: where it goes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_end(self, trainer: pl.Trainer, *args: object, **kwargs: object) -> None:
        """Lightning validates before it stops."""
        if trainer.global_step >= trainer.max_steps:
            trainer.should_stop = True

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write."""
        if not trainer.sanity_checking:
            save_checkpoint(trainer, self.path)


def save_checkpoint(trainer: pl.Trainer, path: Path) -> None:
    """Write a checkpoint under a temporary name, then rename it."""
    if not trainer.is_global_zero:  # the others gather what is to be written, and write nothing
        trainer.save_checkpoint(path)
        return
    with replacing(path) as temporary:
        trainer.save_checkpoint(temporary)


class Patience(EarlyStopping):
    """Lightning's, but a resumed run has the patience that it is given now."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        super().load_state_dict({**state_dict, "patience": self.patience})

    @property
    def state_key(self) -> str:
        """Under which checkpoints keep the count."""
        return super().state_key.replace(type(self).__qualname__, EarlyStopping.__qualname__, 1)


class Progress(RichProgressBar):
    """A bar over all steps with the loss and the validation errors in meV and meV/Å."""

    def _get_train_description(self, current_epoch: int) -> str:
        """One epoch is the whole training: its number says nothing."""
        return "training"

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        """What stands at the end of the bar."""
        values = trainer.callback_metrics
        items: dict[str, Any] = {}
        if "loss" in values:
            items["loss"] = f"{float(values['loss']):.3g}"
        items.update(_validation_items(values))
        return items


class PlainProgress(Callback):
    """A line after each validation, where the output is not a terminal.

    Args:
        total_steps: length of the run.
    """

    def __init__(self, total_steps: int) -> None:
        self.total_steps = total_steps
        self._start = time.monotonic()
        self._first: int | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._start, self._first = time.monotonic(), trainer.global_step

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print."""
        if trainer.sanity_checking or not trainer.is_global_zero or self._first is None:
            return
        seconds = time.monotonic() - self._start
        rate = (trainer.global_step - self._first) / max(seconds, 1e-9)
        left = (self.total_steps - trainer.global_step) / max(rate, 1e-9)
        print(  # noqa: T201
            f"step {trainer.global_step}/{self.total_steps}  {validation_line(trainer.callback_metrics)}"
            f"  {rate:.1f} steps/s  {left:.0f} s left",
            flush=True,
        )


def validation_line(values: dict[str, Tensor]) -> str:
    """Loss and validation errors in one line."""
    items = {"loss": f"{float(values['loss']):.3g}"} if "loss" in values else {}
    items.update(_validation_items(values))
    return "  ".join(f"{name} {value}" for name, value in items.items())


def _validation_items(values: dict[str, Tensor]) -> dict[str, str]:
    items = {}
    for name, label, factor, unit in (
        ("valid_energy_mae", "E", 1e3, "meV/atom"),
        ("valid_forces_mae", "F", 1e3, "meV/Å"),
        ("valid_stress_mae", "σ", 1e3, "meV/Å³"),
    ):
        if name in values:
            items[label] = f"{factor * float(values[name]):.2f} {unit}"
    return items
