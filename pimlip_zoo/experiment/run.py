"""The training itself, and the run folder that it leaves."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import Sampler

from pimlip_zoo.config import RunConfig
from pimlip_zoo.consistency.build import chosen_terms
from pimlip_zoo.datasets.dataset import as_samples
from pimlip_zoo.datasets.device_neighbours import BatchWithoutEdges, link
from pimlip_zoo.datasets.frame import Frame
from pimlip_zoo.datasets.sampler import BatchBudget, BudgetSampler
from pimlip_zoo.datasets.store_frames import LABELS
from pimlip_zoo.datasets.summary import facts_of
from pimlip_zoo.errors import InputError
from pimlip_zoo.experiment.build import loss_terms
from pimlip_zoo.experiment.lost import lost_processes
from pimlip_zoo.experiment.prepare import Experiment
from pimlip_zoo.experiment.record import write_record
from pimlip_zoo.experiment.trainer import make_trainer, switches
from pimlip_zoo.graph import Batch
from pimlip_zoo.models.potential import Potential
from pimlip_zoo.training.data import (
    SampleList,
    StepSampler,
    evaluation_loader,
    training_loader,
)
from pimlip_zoo.training.finetune import (
    parameter_groups,
)
from pimlip_zoo.training.low_rank import Adapters
from pimlip_zoo.training.schedule import RunClock, learning_rate_factor

if TYPE_CHECKING:
    import lightning.pytorch as pl

    from pimlip_zoo.training.module import PotentialTraining

log = logging.getLogger("pimlip_zoo")


@dataclass(frozen=True)
class Outcome:
    """How a training ended."""

    folder: Path
    steps: int
    seconds: float
    signal: int | None
    """SIGINT or SIGTERM, when one ended it."""


def train(
    experiment: Experiment,
    folder: Path,
    *,
    resume: bool = False,
    optimizer: Callable[[Potential], torch.optim.Optimizer] | None = None,
    seconds: float | None = None,
) -> Outcome:
    """Train and leave everything in the run folder.

    Args:
        experiment: from :func:`prepare`.
        folder: the run folder; made here.
        resume: go on from ``checkpoints/last.ckpt``.
        optimizer: another one than the configuration names.
        seconds: after which it ends; None: what ``trainer.max_time`` says.

    Returns:
        How it ended; the weights are in ``checkpoints``.
    """
    config = experiment.config
    last = folder / "checkpoints" / "last.ckpt"
    if resume and not last.exists():
        raise InputError("there is nothing to resume", file=last, hint="train without --resume")
    if config.trainer.device == "cpu" or (
        config.trainer.device == "auto" and not torch.accelerator.is_available()
    ):
        experiment.potential.compile_ahead()  # while Lightning is imported, which takes as long
    with switches(config.trainer):
        return _train(experiment, folder, last if resume else None, optimizer, seconds)


def _train(
    experiment: Experiment,
    folder: Path,
    last: Path | None,
    optimizer: Callable[[Potential], torch.optim.Optimizer] | None,
    seconds: float | None,
) -> Outcome:
    """Train on from the checkpoint ``last``, or from the beginning."""
    config = experiment.config
    from pimlip_zoo.training.callbacks import Interrupted

    clock = run_clock(config)
    module = training_module(experiment, clock, optimizer)
    headless = (
        experiment.potential.is_direct and "forces" not in experiment.labels
    )  # nothing teaches that head
    if headless and config.weak.labels is None and not chosen_terms(config.weak, direct=True):
        log.warning(
            "nothing teaches the head that predicts forces: the labels are energies, and there is no consistency loss; "
            "its forces mean nothing (train without --forces direct, or with --weak direct-consistent)"
        )
    several = config.trainer.devices * config.trainer.nodes > 1
    trainer = make_trainer(config, folder, clock, seconds, some_unused=headless and several)
    sampler = _sampler(experiment, trainer, steps_done(last) if last else 0)
    if trainer.is_global_zero:
        write_record(folder, config, experiment.data)
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    started, linked = time.monotonic(), _link(experiment) is None
    number = None
    try:
        with lost_processes(folder):
            trainer.fit(
                module,
                training_loader(
                    SampleList(experiment.train, linked=linked), sampler, config.data.num_workers
                ),
                evaluation_loader(
                    SampleList(experiment.valid, linked=linked),
                    config.data.valid_batch_size,
                    config.data.num_workers,
                ),
                ckpt_path=last,
                weights_only=True,
            )
    except Interrupted as stop:
        number = stop.number
    return Outcome(folder, trainer.global_step, time.monotonic() - started, number)


def _sampler(experiment: Experiment, trainer: pl.Trainer, first_step: int) -> Sampler[list[int]]:
    """Which samples each step takes: so many structures, or as many as fit a budget of atoms and edges."""
    config, data = experiment.config, experiment.config.data
    first_batch = first_step * config.trainer.accumulate
    rank, ranks = trainer.global_rank, trainer.world_size
    if data.max_atoms is None and data.max_edges is None:
        batches = config.trainer.max_steps * config.trainer.accumulate
        steps = StepSampler(len(experiment.train), data.batch_size, batches, config.seed, rank, ranks)
        steps.first_step = first_batch
        return steps
    limits = {"max_atoms": data.max_atoms, "max_edges": data.max_edges}
    budget = BatchBudget(
        max_structures=-(-data.batch_size // ranks),
        **{name: limit for name, limit in limits.items() if limit is not None},
    )
    sampler = BudgetSampler(
        *as_samples(experiment.train).sizes(),
        budget,
        seed=config.seed,
        rank=rank,
        ranks=ranks,
        passes=None,
    )
    sampler.skip_to(first_batch)
    return sampler


def training_module(
    experiment: Experiment,
    clock: RunClock | None = None,
    optimizer: Callable[[Potential], torch.optim.Optimizer] | None = None,
) -> PotentialTraining:
    """What Lightning trains: the potential with its losses and its optimiser.

    Args:
        experiment: from :func:`prepare`.
        clock: how far the run is; None: only steps count.
        optimizer: another one than the configuration names.
    """
    from pimlip_zoo.training.module import LatePhase, PotentialTraining

    config = experiment.config
    clock = clock or run_clock(config)
    late = config.loss.late
    phase = None
    if late.start is not None:
        phase = LatePhase(partial(clock.has_reached, late.start), late.weights)
    decay = learning_rate_factor(
        config.schedule.name,
        warmup_steps=config.schedule.warmup_steps,
        clock=clock,
        final=config.schedule.final,
    )

    def factor(step: int) -> float:
        return decay(step) * (late.rate if phase is not None and phase.begun(step) else 1.0)

    terms = [*loss_terms(config, experiment.labels), *experiment.extra_terms, *experiment.weak]
    adapters = None
    if config.finetune.lora is not None:
        adapters = Adapters(experiment.potential, config.finetune.lora, config.seed)
        log.info(
            "low-rank updates of %d maps: %d numbers are trained, all %d weights stay as they are",
            len(adapters.maps),
            adapters.count,
            sum(weight.numel() for weight in experiment.potential.model.parameters()),
        )
    return PotentialTraining(
        experiment.potential,
        terms,
        optimizer or partial(_optimizer, experiment, adapters),
        factor,
        adapters=adapters,
        whole=experiment.whole,
        late=phase,
        forces="forces" in experiment.labels,
        virial="stress" in experiment.labels,
        link=_link(experiment),
        summary={
            "config": config.model_dump(mode="json"),
            "energy_references": experiment.references.source,
            "baseline": experiment.baseline,
            "labels": list(experiment.labels),
            "training_structures": len(experiment.train),
            "coverage": {
                "training": _counts(experiment.frames),
                "validation": _counts(experiment.valid_frames),
            },
            "versions": _versions(),
            "structures": {part: about["sha256"] for part, about in (experiment.data or {}).items()},
        },
    )


def run_clock(config: RunConfig) -> RunClock:
    """Of a run that has not begun."""
    return RunClock(config.trainer.max_steps, start=config.schedule.warmup_steps)


def _optimizer(experiment: Experiment, adapters: Adapters | None, module: Potential) -> torch.optim.Optimizer:
    """The one that the configuration names."""
    from pimlip_zoo.training.muon import Muon, linear_maps

    section, labels = experiment.config.optimizer, experiment.config.weak.labels
    rate = section.lr
    if labels is not None:
        rate *= labels.recipe().learning_rate_factor(experiment.labels)
    factors = experiment.config.finetune.learning_rates
    groups = parameter_groups(module, rate, factors, None if adapters is None else adapters.factors)
    options: dict[str, Any] = {
        "lr": rate,
        "betas": section.betas,
        "weight_decay": section.weight_decay,
        "amsgrad": section.amsgrad,
        "foreach": True,
    }
    if section.name == "muon":
        return Muon(groups, linear_maps(module.model), equal_outputs=section.equal_outputs, **options)
    return torch.optim.AdamW(groups, **options)


def _link(experiment: Experiment) -> Callable[[BatchWithoutEdges], Batch] | None:
    backend, cutoff = experiment.config.data.neighbours, as_samples(experiment.train).list_cutoff
    if backend == "workers" or cutoff is None:
        return None
    return partial(link, cutoff=cutoff, backend=backend)


def _counts(frames: Sequence[Frame]) -> dict[str, int]:
    facts = facts_of(frames)
    return {
        "structures": len(frames),
        "atoms": int(facts.natoms.sum()),
        **{label: facts.count(label) for label in LABELS},
        "periodic": int(facts.periodic.sum()),
    }


def _versions() -> dict[str, str]:
    """Of what a result depends on."""
    import platform
    from importlib.metadata import version

    packages = ("pimlip-zoo", "torch", "e3nn", "lightning", "numpy")
    return {**{name: version(name) for name in packages}, "python": platform.python_version()}


def steps_done(checkpoint: Path) -> int:
    """The optimiser steps of a training checkpoint."""
    from pimlip_zoo.training.checkpoint import read_checkpoint

    step = read_checkpoint(checkpoint).get("global_step")
    if not isinstance(step, int) or step < 0:
        raise InputError("does not say its step: no training wrote it", file=checkpoint, key="global_step")
    return step
