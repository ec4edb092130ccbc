"""Options of losses, optimiser and schedule that change nothing in a run: refused where the user gave them.

What the configuration of an earlier run holds is said: it is complete, so that nobody knows who gave what in it.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

from pimlip_zoo.config import RunConfig
from pimlip_zoo.errors import InputError
from pimlip_zoo.experiment.record import dotted_options
from pimlip_zoo.losses.base import LOSSES
from pimlip_zoo.training.schedule import READ_BY, RunClock

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
    """Options of the sections ``loss``, ``optimizer`` and ``schedule`` that change nothing beside all others.

    Args:
        config: complete.
        labels: which reference labels are trained on.
    """
    return [
        *_of_schedule(config),
        *_of_optimizer(config),
        *_of_losses(config, labels),
        *_of_late(config, labels),
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


def _missing(config: RunConfig, label: str) -> str:
    """Why nothing is trained on a label."""
    if config.data.labels != "auto":
        return f"data.labels leaves {label} out"
    return f"no {label} is trained on, for no training structure has one"
