"""What happens around the steps: averaged weights, a table of metrics, stopping when told to."""

from __future__ import annotations

import csv
import logging
import math
import signal
import time
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, cast

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import (
    Callback,
    Checkpoint,
    EarlyStopping,
    ModelCheckpoint,
    WeightAveraging,
)
from torch import Tensor

from pimlip_zoo.errors import InputError
from pimlip_zoo.files import append, regular_file, replacing
from pimlip_zoo.training.schedule import RunClock

if TYPE_CHECKING:
    from pimlip_zoo.training.module import PotentialTraining

log = logging.getLogger("pimlip_zoo")


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
                # As torch.optim.swa_utils does, which has no public name for it either.
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


class StaysInItsFolder(Callback):
    """Ends a run whose folder was moved or deleted, at its next validation.

    Lightning makes the folder of a checkpoint where it is missing: without a look at a file that is written once, at
    the start, a run would go on into a new folder that lacks all the rest.

    Args:
        written: such a file, ``config.yaml``.
    """

    def __init__(self, written: Path) -> None:
        self.written = written

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look whether it is there.

        Raises:
            InputError: naming the folder.
        """
        if trainer.is_global_zero and not self.written.exists():
            raise InputError(
                f"the folder of the run lacks {self.written.name}, which it had: it was moved or deleted",
                file=self.written.parent,
                hint="go on from where it is now with --resume",
            )


class MetricsTable(Callback):
    """Appends a row to ``metrics.csv`` after each validation: errors, and value, weight and schedule of each loss.

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
        self.columns: tuple[str, ...] = self.COLUMNS
        self._start = time.monotonic()
        self._before = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Drop rows of steps that are done again, because the run was killed before their checkpoint was written.

        Columns are those of the file and those of the losses that this part of the run has.
        """
        watched = [name for term in watched_terms(pl_module) for name in columns_of(term)]
        self.columns = (*self.COLUMNS, *watched)
        if not trainer.is_global_zero or not self.path.exists():
            return
        with regular_file(self.path).open(newline="") as file:
            reader = csv.DictReader(file)
            rows, before = list(reader), tuple(reader.fieldnames or ())
        self.columns = (*self.columns, *(name for name in before if name not in self.columns))
        kept = [
            row for row in rows if (row["step"] or "").isdigit() and int(row["step"]) <= trainer.global_step
        ]
        if len(kept) < len(rows) or before != self.columns:
            with replacing(self.path) as temporary, temporary.open("w", newline="") as file:
                writer = csv.DictWriter(file, self.columns, extrasaction="ignore")
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
        row.update({name: float(values[name]) for name in self.columns if name in values})
        text = StringIO(newline="")
        writer = csv.DictWriter(text, self.columns)
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


_MEASURED = 20
"""Steps at least that tell how fast a run is."""


class TimeLimit(Callback):
    """Ends a run when its time is over, and tells its clock how much of it is used.

    The time of every part of a run that was resumed counts. Ranks agree: they take the first one's time.

    Args:
        seconds: budget of the run.
        clock: of the run; the schedule of the learning rate reads it.
        shorter_power: where the time is enough for a part of the steps, the rate is divided by this power of it.
        most: factor of the rate at most.
    """

    def __init__(
        self, seconds: float, clock: RunClock, shorter_power: float = 0.0, most: float = math.inf
    ) -> None:
        self.budget = seconds
        self.clock = clock
        self.shorter_power, self.most = shorter_power, most
        clock.budget = seconds
        self._before = 0.0
        self._start: float | None = None
        self._mark: tuple[int, float] | None = None
        self._known = shorter_power == 0.0

    @property
    def seconds(self) -> float:
        """Time used so far, over all resumptions."""
        return self._before + (0.0 if self._start is None else time.monotonic() - self._start)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._start = time.monotonic()
        self._tell(trainer)

    def on_train_batch_start(self, trainer: pl.Trainer, *args: object) -> None:
        """Look at the clock."""
        self._tell(trainer)

    def on_train_batch_end(self, trainer: pl.Trainer, *args: object, **kwargs: object) -> None:
        """Raise the rate once the speed is known; end the run after the first step that was taken at the final rate."""
        if not self._known:
            self._look_ahead(trainer)
        if self.clock.time_share >= 1.0:
            trainer.should_stop = True

    def _look_ahead(self, trainer: pl.Trainer) -> None:
        """How many steps there is time for, at the speed of those behind the first, which sets up."""
        step, now = trainer.global_step, self.clock.time_share * self.budget
        if self._mark is None:
            self._mark = (step, now)
        first, then = self._mark
        if step < max(self.clock.start, first + _MEASURED) or now <= then:
            return
        self._known = True
        expected = step + (self.budget - now) * (step - first) / (now - then)
        part = expected / self.clock.total_steps
        before = self.clock.raised
        self.clock.raised, self.clock.raised_at = min(min(part, 1.0) ** -self.shorter_power, self.most), step
        if self.clock.raised == 1.0:
            if before != 1.0:
                log.info("there is time for all steps now: the learning rate is not raised any more")
            return
        log.info(
            "there is time for about %s of %s steps: the learning rate is raised %.2g times",
            f"{float(f'{expected:.2g}'):,.0f}",
            f"{self.clock.total_steps:,}",
            self.clock.raised,
        )

    def _tell(self, trainer: pl.Trainer) -> None:
        share = self.seconds / self.budget
        if trainer.world_size > 1:
            share = float(trainer.strategy.broadcast(share))
        self.clock.time_share = share

    def state_dict(self) -> dict[str, Any]:
        """Time so far, how much there is, and what the rate was raised by at which step."""
        raised = (self.clock.raised, self.clock.raised_at, *self._made_with()) if self._known else None
        return {"seconds": self.seconds, "budget": self.budget, "raised": raised}

    def _made_with(self) -> tuple[float, ...]:
        """What the factor of the rate follows from, beside the speed."""
        return self.budget, self.shorter_power, self.most, self.clock.total_steps

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting; the rate stays what it was raised to, unless time, steps or limits are others now."""
        self._before = state_dict["seconds"]
        if (raised := state_dict.get("raised")) is None or self.shorter_power == 0.0:
            return
        factor, self.clock.raised_at, *made_with = raised
        self.clock.raised = min(factor, self.most)
        self._known = tuple(made_with) == self._made_with()  # else the speed is measured again


class Plateau(Callback):
    """Lowers the learning rate where validations do not improve.

    Not torch's ``ReduceLROnPlateau``: Lightning steps it after the checkpoint of a validation is written, so that a
    resumed run would miss a step.

    Args:
        factor: of the rate, each time.
        patience: validations without a better score before that.
        threshold: share by which a score has to be lower to be better.
        clock: of the run; the schedule of the learning rate reads it.
    """

    def __init__(self, factor: float, patience: int, threshold: float, clock: RunClock) -> None:
        self.factor, self.patience, self.threshold, self.clock = factor, patience, threshold, clock
        self.best, self.waited = float("inf"), 0

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count."""
        if trainer.sanity_checking:
            return
        score = float(trainer.callback_metrics["valid_score"])
        better = score < self.best * (1.0 - self.threshold)
        self.waited = 0 if better else self.waited + 1
        self.best = score if better else self.best
        if self.waited > self.patience:
            self.waited = 0
            self.clock.plateau *= self.factor

    def state_dict(self) -> dict[str, Any]:
        """How long it has waited, and the factor so far."""
        return {"best": self.best, "waited": self.waited, "rate": self.clock.plateau}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on."""
        self.best, self.waited = state_dict["best"], state_dict["waited"]
        self.clock.plateau = state_dict["rate"]


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
    """Lightning's, but a file that cannot be written leaves the one before it as it was.

    Args:
        anew: says whether the weights of the losses have changed; what was best before that is not compared with what
            comes after it. None: they never change.
        options: of Lightning's.
    """

    def __init__(self, *, anew: Callable[[int], bool] | None = None, **options: Any) -> None:
        super().__init__(**options)
        self._anew = anew
        self._chosen_anew = False

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compare with the best so far of the same weights of the losses."""
        if self._anew is not None and not self._chosen_anew and self._anew(trainer.global_step - 1):
            self._chosen_anew = True
            self.best_k_models, self.best_model_score, self.current_score = {}, None, None
            self.kth_best_model_path, self.best_model_path = "", ""
            self.kth_value = torch.tensor(float("inf"))
        super().on_validation_end(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """Lightning's, and whether the choice has begun anew."""
        return {**super().state_dict(), "chosen_anew": self._chosen_anew}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the best so far, wherever the run's folder is now; without its file, choose among what comes."""
        folder = Path(self.dirpath or "")
        best = folder / Path(state_dict["best_model_path"] or "nowhere").name
        here: dict[str, Any] = {"dirpath": self.dirpath}
        if best.is_file():
            here["best_model_path"] = str(best)
            here["best_k_models"] = {
                str(folder / Path(path).name): score for path, score in state_dict["best_k_models"].items()
            }
            worst = state_dict["kth_best_model_path"]
            here["kth_best_model_path"] = str(folder / Path(worst).name) if worst else ""
        else:
            if state_dict["best_model_score"] is not None:
                log.warning("%s is not there any more: the best of the weights that follow are kept", best)
            here |= {"best_model_path": "", "best_k_models": {}, "kth_best_model_path": ""}
            here |= {"best_model_score": None, "kth_value": torch.tensor(float("inf"))}
        super().load_state_dict({**state_dict, **here})
        self._chosen_anew = bool(state_dict.get("chosen_anew", False))

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


def watched_terms(module: pl.LightningModule) -> list[str]:
    """Names of the losses of a training."""
    return [term.name for term in cast("PotentialTraining", module).losses]


def columns_of(term: str) -> tuple[str, str, str]:
    """Under which the value of a loss, its weight and the factor of its schedule are logged."""
    return f"loss_{term}", f"weight_{term}", f"factor_{term}"
