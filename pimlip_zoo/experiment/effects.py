"""Options that change nothing in a run are refused where the user gave them.

What the configuration of an earlier run holds is said: it is complete, so that nobody knows who gave what in it.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

from pimlip_zoo.config import RunConfig
from pimlip_zoo.consistency.build import chosen_terms
from pimlip_zoo.consistency.config import ScheduleConfig, TermConfig, WeakConfig
from pimlip_zoo.consistency.residuals import get_residual
from pimlip_zoo.errors import InputError
from pimlip_zoo.experiment.record import dotted_options
from pimlip_zoo.losses.base import LOSSES
from pimlip_zoo.training.schedule import READ_BY, RunClock
from pimlip_zoo.weak_labels.pool import PoolOptions

log = logging.getLogger("pimlip_zoo")


class Idle(NamedTuple):
    """An option that changes nothing."""

    key: str
    reason: str
    hint: str = "leave it out"
    told: int = logging.NOTSET
    """The run is too short for it, whoever chose it, which is logged at this level."""


def check_effects(config: RunConfig, labels: Sequence[str], stated: Collection[str] | None) -> None:
    """Refuse what the user gave and what changes nothing; say what else of this kind a run's configuration holds.

    Args:
        config: complete.
        labels: which reference labels are trained on.
        stated: dotted keys that the user gave; None: the program made the configuration, and nothing is looked at.

    Raises:
        InputError: naming the first such key, and what would make it count.
    """
    if stated is None:
        return
    idle = {found.key: found for found in without_effect(config, labels)}
    for key, found in idle.items():
        if key in stated:
            raise InputError(f"has no effect: {found.reason}", key=key, hint=found.hint)
    usual, now = dict(dotted_options(RunConfig())), dict(dotted_options(config))
    for key, found in idle.items():
        if found.told:
            log.log(found.told, "%s=%s is too long for this run: %s", key, now[key], found.reason)
        elif key in usual and usual[key] != now[key] and key not in config.recipe.filled:
            log.warning("%s=%s has no effect in this run: %s", key, now[key], found.reason)


def without_effect(config: RunConfig, labels: Sequence[str]) -> list[Idle]:
    """Options that change nothing beside all others.

    Args:
        config: complete.
        labels: which reference labels are trained on.
    """
    return [
        *_of_schedule(config),
        *_of_optimizer(config),
        *_of_losses(config, labels),
        *_of_late(config, labels),
        *_of_ending(config),
        *_of_weak_losses(config),
        *_of_weak_labels(config),
    ]


def _of_schedule(config: RunConfig) -> Iterator[Idle]:
    schedule, trainer = config.schedule, config.trainer
    for option, names in READ_BY.items():
        if schedule.name not in names:
            yield Idle(
                f"schedule.{option}",
                f"schedule.name is {schedule.name}",
                f"leave it out; schedule.name={'|'.join(names)} would read it",
            )
    timeless = "trainer.max_time is not given" if trainer.max_time is None else ""
    if schedule.shorter_power > 0 and timeless:
        yield Idle("schedule.shorter_power", timeless, "give --max-time, or leave it out")
    if schedule.highest_lr is not None and (timeless or schedule.shorter_power == 0):
        yield Idle("schedule.highest_lr", timeless or "schedule.shorter_power is 0")
    if _has_stages(config):  # a stage before the run may be longer
        return
    if schedule.warmup_steps >= trainer.max_steps:
        yield Idle(
            "schedule.warmup_steps",
            f"of {trainer.max_steps} steps none has the rate optimizer.lr, and nothing decays",
            "give fewer than the run has",
            told=logging.INFO,
        )
    every = min(trainer.valid_every, trainer.max_steps)
    if schedule.name == "plateau" and (schedule.plateau_patience + 2) * every >= trainer.max_steps:
        yield Idle(
            "schedule.plateau_patience",
            f"with {trainer.max_steps // every} validations the rate stays as it is",
            "give less, or validate more often (trainer.valid_every)",
            told=logging.WARNING,
        )


def _of_optimizer(config: RunConfig) -> Iterator[Idle]:
    # Muon looks at all others, too: it moves as AdamW does what is no matrix.
    if config.optimizer.name != "muon" and config.optimizer.equal_outputs:
        yield Idle(
            "optimizer.equal_outputs",
            f"optimizer.name is {config.optimizer.name}",
            "leave it out, or set optimizer.name to muon",
        )


def _of_losses(config: RunConfig, labels: Sequence[str]) -> Iterator[Idle]:
    weak = config.weak.labels
    learnt = labels if weak is None else weak.recipe().learns(labels)
    # What keeps the labels that a model gives has its weights from these.
    kept = {"energy_per_atom", "forces"} if config.finetune.replay is not None else set()
    for name, options in config.loss.terms.items():
        label, further = (
            LOSSES.get(name).label,
            [key for key in type(options).model_fields if key != "weight"],
        )
        if label not in learnt:
            idle = dict.fromkeys(further, _missing(config, label))
            if options.weight > 0 and name not in kept:
                idle["weight"] = _missing(config, label)
        elif options.weight == 0:
            idle = dict.fromkeys(further, f"loss.{name}.weight is 0")
        else:
            idle = dict(options.unread())
        for key, reason in idle.items():
            yield Idle(f"loss.{name}.{key}", reason)


def _of_late(config: RunConfig, labels: Sequence[str]) -> Iterator[Idle]:
    late, terms, steps = config.loss.late, config.loss.terms, config.trainer.max_steps
    if late.start is None:
        for key in [*late.weights, "rate"]:
            yield Idle(
                f"loss.late.{key}", "loss.late.start is not given", "give loss.late.start, or leave it out"
            )
        return
    for name, weight in late.weights.items():
        label = LOSSES.get(name).label
        if weight > 0 and label not in labels:
            yield Idle(f"loss.late.{name}", _missing(config, label))
        elif weight > 0 and (name not in terms or terms[name].weight == 0):
            yield Idle(
                f"loss.late.{name}",
                f"loss.{name}.weight is 0, and what is no part of the loss has no other weight later",
                f"leave it out, or give loss.{name}.weight > 0",
            )
    warmup = config.schedule.warmup_steps
    clock = RunClock(steps, start=warmup)
    if warmup < steps and config.trainer.max_time is None and not clock.has_reached(late.start, steps - 1):
        yield Idle("loss.late.start", f"the run of {steps} steps ends before", "give less, or more steps")


def _of_ending(config: RunConfig) -> Iterator[Idle]:
    trainer, data = config.trainer, config.data
    every = min(trainer.valid_every, trainer.max_steps)
    endless = trainer.patience is not None and (trainer.patience + 1) * every >= trainer.max_steps
    if endless and not _has_stages(config):
        yield Idle(
            "trainer.patience",
            f"with {trainer.max_steps // every} validations the run is over before",
            "give less, or validate more often (trainer.valid_every)",
            told=logging.WARNING,
        )
    if data.valid is not None:
        for option in ("valid_fraction", "max_valid"):
            yield Idle(f"data.{option}", "data.valid is given, and nothing is held out")


def _of_weak_losses(config: RunConfig) -> Iterator[Idle]:
    weak, direct = config.weak, config.model.configure().force_head == "direct"
    chosen = chosen_terms(weak, direct=direct)
    for name, term in weak.terms.items():
        if name in chosen:
            yield from _of_term(config, name, term)
        else:
            yield from _of_left_out(name, term)
    yield from _of_copies(weak, chosen)
    if not chosen:
        for option in ("teacher", "fraction"):
            yield Idle(f"weak.{option}", "there is no weak loss")
    if not chosen or weak.teacher == "none":
        yield Idle("weak.teacher_decay", "there is no teacher", "leave it out, or set weak.teacher to ema")
    if not chosen or weak.unlabelled is None:
        yield Idle("weak.unlabelled_batch_size", "no weak loss looks at unlabelled structures")


def _of_left_out(name: str, term: TermConfig) -> Iterator[Idle]:
    key = f"weak.terms.{name}"
    reason = f"{key}.weight is 0" if term.weight == 0 else f"{name} is for direct force heads"
    if term.weight > 0:
        yield Idle(f"{key}.weight", reason, "leave it out, or set it to 0")
    schedule = (f"schedule.{option}" for option in ScheduleConfig.model_fields)
    for option in ("unit", "detach", *schedule, *(f"options.{option}" for option in term.options)):
        yield Idle(f"{key}.{option}", reason)


def _of_copies(weak: WeakConfig, chosen: Iterable[str]) -> Iterator[Idle]:
    reads = [get_residual(name).reads for name in chosen]
    perturbation = weak.perturbation
    if not any(read.displaced for read in reads):
        for option in (*type(perturbation).model_fields, *(perturbation.model_extra or {})):
            yield Idle(f"weak.perturbation.{option}", "no weak loss looks at displaced structures")
    if not any(read.strained for read in reads):
        yield Idle("weak.strain", "no weak loss looks at strained structures")


def _of_term(config: RunConfig, name: str, term: TermConfig) -> Iterator[Idle]:
    key, residual, schedule = f"weak.terms.{name}", get_residual(name), term.schedule
    own = residual.reads.own if config.weak.teacher == "ema" else residual.reads.own | residual.reads.target
    if residual.penalty:
        yield Idle(f"{key}.unit", f"{name} is a loss by itself")
    elif term.detach == "forces" and not own.forces | own.virials:
        yield Idle(f"{key}.detach", f"no force in {name} has a gradient")
    elif term.detach == "energies" and not own.energies:
        yield Idle(f"{key}.detach", f"no energy in {name} has a gradient")
    unread = {"constant": ("start", "steps", "last"), "warm_up": ("last",), "decay": ()}[schedule.name]
    for option in unread:
        yield Idle(f"{key}.schedule.{option}", f"{key}.schedule.name is {schedule.name}")
    late = schedule.name != "constant" and schedule.start >= config.trainer.max_steps
    if late and not _has_stages(config):  # which may have the terms, too
        yield Idle(
            f"{key}.schedule.start",
            f"the run of {config.trainer.max_steps} steps ends before",
            "give less, or more steps",
        )


def _of_weak_labels(config: RunConfig) -> Iterator[Idle]:
    labels = config.weak.labels
    if labels is None:
        return
    recipe = labels.recipe()
    idle = dict(recipe.options.unread(losses=bool(config.weak.active)))
    idle |= {
        f"pool.{option}": reason
        for option, reason in (
            labels.pool.unread()
            if recipe.samples
            else dict.fromkeys(PoolOptions.model_fields, f"{labels.method} samples no structures")
        ).items()
    }
    for option, reason in idle.items():
        yield Idle(f"weak.labels.{option}", reason)


def _has_stages(config: RunConfig) -> bool:
    """Whether something is trained before the run, with its options and a length of its own."""
    labels = config.weak.labels
    return labels is not None and labels.recipe().steps_before() > 0


def _missing(config: RunConfig, label: str) -> str:
    """Why nothing is trained on a label."""
    if config.data.labels != "auto":
        return f"data.labels leaves {label} out"
    return f"no {label} is trained on, for no training structure has one"
