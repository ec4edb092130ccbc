"""What a training says while it runs: a bar on terminals, lines elsewhere, and all of it in the log."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback, RichProgressBar
from torch import Tensor

from pimlip_zoo.training.callbacks import columns_of, watched_terms
from pimlip_zoo.training.schedule import RunClock
from pimlip_zoo.written import milli

log = logging.getLogger("pimlip_zoo")

_FIRST_AFTER, _NEXT_AFTER = 5.0, 60.0
"""Seconds without a line before one is said between validations: at first, and later."""
_WINDOW = 60.0
"""Seconds over which the rate is taken."""
_LETTERS = {"energy": "E", "forces": "F", "stress": "σ"}


def legend(structures: int, labels: Sequence[str], *, averaged: bool) -> str:
    """What the numbers of a line are.

    Args:
        structures: that are validated on.
        labels: that are trained on.
        averaged: the weights that are validated are averages over steps.
    """
    of = ", averaged weights; loss: of the last batch" if averaged else "; loss: of the last batch"
    letters = ", ".join(letter for label, letter in _LETTERS.items() if label in labels)
    return f"{letters} below: mean absolute errors (MAE) on {structures:,} validation structures{of}"


class TimeLeft:
    """Until the last step at the rate of the last minute, or until the time is over, whichever is sooner.

    Args:
        clock: how far the run is.
    """

    def __init__(self, clock: RunClock) -> None:
        self.clock = clock
        self._marks: deque[tuple[float, int]] = deque([(time.monotonic(), 0)])

    def start(self, step: int) -> None:
        """Count from here."""
        self._marks = deque([(time.monotonic(), step)])

    def seconds(self, step: int) -> tuple[float, float]:
        """Steps a second, and seconds left."""
        now = time.monotonic()
        while len(self._marks) > 1 and self._marks[1][0] <= now - _WINDOW:
            self._marks.popleft()
        then, first = self._marks[0]
        if now - self._marks[-1][0] > 0.02 * _WINDOW:
            self._marks.append((now, step))
        rate = (step - first) / max(now - then, 1e-9)
        left = (self.clock.total_steps - step) / max(rate, 1e-9)
        if self.clock.budget is not None:
            left = min(left, max(1.0 - self.clock.time_share, 0.0) * self.clock.budget)
        return rate, left


class Progress(RichProgressBar):
    """A bar over all steps with the loss, the validation errors in meV and meV/Å, and the time left.

    The line of each validation goes to the log as well, past the screen.

    Args:
        clock: how far the run is.
    """

    def __init__(self, clock: RunClock) -> None:
        super().__init__()
        self._left = TimeLeft(clock)
        self._set_up = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start counting steps."""
        self._left.start(trainer.global_step)
        super().on_train_start(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The first step, in which much is set up, is no measure of the rate."""
        if not self._set_up:
            self._set_up = True
            self._left.start(trainer.global_step)
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write down."""
        super().on_validation_end(trainer, pl_module)
        if not trainer.sanity_checking and trainer.is_global_zero:
            log.info("%s", _line(trainer, pl_module, self._left), extra={"on_screen": True})

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
        rate, left = self._left.seconds(trainer.global_step)
        if rate > 0:
            items["left"] = duration(left)
        return items


class PlainProgress(Callback):
    """A line after each validation where the output is not a terminal, and between validations that are far apart.

    Args:
        clock: how far the run is.
    """

    def __init__(self, clock: RunClock) -> None:
        self._left = TimeLeft(clock)
        self._next = 0.0
        self._set_up = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start counting steps."""
        self._left.start(trainer.global_step)
        self._next = time.monotonic() + _FIRST_AFTER

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: object, **kwargs: object
    ) -> None:
        """Say how fast it is where the next validation is far; the first step sets up, and is no measure."""
        if not self._set_up:
            self._set_up = True
            self._left.start(trainer.global_step)
        if time.monotonic() < self._next or not trainer.is_global_zero:
            return
        self._next = time.monotonic() + _NEXT_AFTER
        loss = trainer.callback_metrics.get("loss")
        shown = "" if loss is None else f"  loss {float(loss):.3g}"
        log.info("step %d/%d%s%s", trainer.global_step, trainer.max_steps, shown, _speed(trainer, self._left))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say the errors."""
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        self._next = time.monotonic() + _NEXT_AFTER
        log.info("%s", _line(trainer, pl_module, self._left))


def _line(trainer: pl.Trainer, module: pl.LightningModule, clock: TimeLeft) -> str:
    line = validation_line(trainer.callback_metrics, watched_terms(module))
    return f"step {trainer.global_step}/{trainer.max_steps}  {line}{_speed(trainer, clock)}"


def _speed(trainer: pl.Trainer, clock: TimeLeft) -> str:
    """Rate and time left; nothing before there is a rate."""
    rate, left = clock.seconds(trainer.global_step)
    return f"  {rate:.3g} steps/s  {duration(left)} left" if rate > 0 else ""


def duration(seconds: float) -> str:
    """Such as 45 s, 12 min, 3 h 05 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def validation_line(values: dict[str, Tensor], terms: Sequence[str] = ()) -> str:
    """Loss and validation errors in one line.

    Args:
        values: as they are logged.
        terms: losses to show by themselves, as weight times value, with the factor of a schedule that is at work.
    """
    items = {"loss": f"{float(values['loss']):.3g}"} if "loss" in values else {}
    shown = []
    for term in terms:
        if all(name in values for name in columns_of(term)):
            value, weight, factor = (float(values[name]) for name in columns_of(term))
            shown.append(f"{term} {weight:g}" + (f"*{factor:.3g}" if factor != 1.0 else "") + f"*{value:.3g}")
    if shown:
        items["loss"] = f"{items.get('loss', '')} ({', '.join(shown)})"
    items.update(_validation_items(values))
    return "  ".join(f"{name} {value}" for name, value in items.items())


def _validation_items(values: dict[str, Tensor]) -> dict[str, str]:
    items = {}
    for name, label, unit in (
        ("valid_energy_mae", "E", "meV/atom"),
        ("valid_forces_mae", "F", "meV/Å"),
        ("valid_stress_mae", "σ", "meV/Å³"),
    ):
        if name in values:
            items[label] = f"{milli(float(values[name]))} {unit}"
    return items
