"""A run, put together from its configuration and carried out: data, potential, loss, training, run folder."""

from __future__ import annotations

import dataclasses
import datetime
import logging
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pimlip_zoo.config import DataSection, RunConfig, save_config
from pimlip_zoo.datasets.coverage import coverage
from pimlip_zoo.datasets.frame import Frame
from pimlip_zoo.datasets.neighbours import frame_to_sample
from pimlip_zoo.datasets.readers import load_frames
from pimlip_zoo.datasets.statistics import (
    EnergyReferences,
    average_neighbours,
    check_references,
    fit_references,
    force_rms,
    is_isolated_atom,
    isolated_atoms,
    references_from_atoms,
    species_of,
)
from pimlip_zoo.errors import InputError, did_you_mean
from pimlip_zoo.graph import Batch
from pimlip_zoo.losses.base import LossTerm
from pimlip_zoo.losses.supervised import SupervisedTerm
from pimlip_zoo.losses.weak import WeakTerm
from pimlip_zoo.losses.weak_build import build_weak_term, check_weak, chosen_terms, list_skin
from pimlip_zoo.models.potential import Potential
from pimlip_zoo.training.data import SampleList, StepSampler, evaluation_loader, training_loader
from pimlip_zoo.training.finetune import (
    freeze,
    parameter_groups,
    refit_references,
    set_references,
    start_from,
)
from pimlip_zoo.training.schedule import learning_rate_factor

if TYPE_CHECKING:
    import lightning.pytorch as pl

    from pimlip_zoo.training.module import PotentialTraining

__all__ = ["Experiment", "Outcome", "load_split", "parse_duration", "prepare", "steps_done", "train"]

log = logging.getLogger("pimlip_zoo")

LABELS = ("energy", "forces", "stress")


@dataclass(frozen=True)
class Experiment:
    """What a run consists of."""

    config: RunConfig
    """The configuration, complete."""
    potential: Potential
    """Untrained, or as given to fine-tune."""
    references: EnergyReferences
    """Energy references and where they come from."""
    labels: tuple[str, ...]
    """Which labels are trained on."""
    train: list[Batch]
    """Training samples, their neighbour lists as wide as the weak losses need them."""
    valid: list[Batch]
    """Validation samples."""
    weak: WeakTerm | None = None
    """Weakly supervised losses."""
    extra_terms: tuple[LossTerm, ...] = ()
    """Further losses."""
    frames: tuple[Frame, ...] = ()
    """Training structures as they were read."""
    valid_frames: tuple[Frame, ...] = ()
    """Validation structures as they were read."""
    baseline: dict[str, str] | None = None
    """The calculator, and its version, that the potential is a difference to; None: it stands alone."""


@dataclass(frozen=True)
class Outcome:
    """How a training ended."""

    folder: Path
    steps: int
    seconds: float
    signal: int | None
    """SIGINT or SIGTERM, when one ended it."""


def prepare(
    config: RunConfig,
    *,
    split: tuple[list[Frame], list[Frame]] | None = None,
    checkpoint: Path | None = None,
) -> Experiment:
    """Read the data and build the potential.

    Args:
        config: of the run.
        split: training and validation structures, where they are not what the configuration names.
        checkpoint: of the same run, when it is to be resumed.

    Raises:
        InputError: for data or options that cannot be used.
    """
    torch.manual_seed(config.seed)
    data = config.data
    _check_trainer(config)
    train, valid = split or load_split(config)
    references_file = _reference_frames(data)
    atoms = isolated_atoms([*references_file, *train])
    if not references_file:
        train = [f for f in train if not (is_isolated_atom(f) and f.energy is not None)] or train
    labels = _labels(data, train)
    # What is not trained on is not looked at: not for the force scale, not for choosing the best weights.
    train, valid = [_with_labels(f, labels) for f in train], [_with_labels(f, labels) for f in valid]
    loss_terms(config, labels)
    log.info("%s", _coverage("training", train))
    log.info("%s", _coverage("validation", valid))
    species = species_of([*train, *valid])
    if config.finetune.run is None:
        references = _references(config, train, species, atoms)
        if data.check_references:
            check_references(train, species, references)
        potential, samples = _potential(config, train, species, references)
    else:
        potential, samples, references = _fine_tuned(config, train, species, atoms, checkpoint)
        species = potential.species
        if data.check_references:
            check_references(train, species, references)
    skin = list_skin(config.weak, species, potential.cutoff, direct=potential.is_direct)
    if skin > 0:
        samples = [frame_to_sample(frame, species, potential.cutoff + skin) for frame in train]
    valid_samples = [frame_to_sample(frame, species, potential.cutoff) for frame in valid]
    weak = _weak_term(config, potential, labels, samples)
    return Experiment(
        config, potential, references, labels, samples, valid_samples, weak, (), tuple(train), tuple(valid)
    )


def loss_terms(config: RunConfig, labels: Sequence[str]) -> list[LossTerm]:
    """The supervised terms of a configuration for the labels that are there."""
    needs = {"energy": "energy", "energy_per_atom": "energy", "forces": "forces", "stress": "stress"}
    terms: list[LossTerm] = []
    for quantity, label in needs.items():
        section = getattr(config.loss, quantity)
        if label in labels and section.weight > 0:
            terms.append(SupervisedTerm(quantity, section.weight, section.distance, section.delta))  # type: ignore[arg-type]
    if not terms:
        raise InputError("every loss has weight 0", key="loss", mend="give one a positive weight")
    return terms


def train(experiment: Experiment, folder: Path, *, resume: bool = False) -> Outcome:
    """Train and leave everything in the run folder.

    Args:
        experiment: from :func:`prepare`.
        folder: the run folder; made here.
        resume: go on from ``checkpoints/last.ckpt``.

    Returns:
        How it ended; the weights are in ``checkpoints``.
    """
    config = experiment.config
    last = folder / "checkpoints" / "last.ckpt"
    if resume and not last.exists():
        raise InputError("there is nothing to resume", file=last, mend="train without --resume")
    if config.trainer.threads is not None:
        torch.set_num_threads(config.trainer.threads)
    torch.set_float32_matmul_precision("high" if config.trainer.tf32 else "highest")
    from pimlip_zoo.training.callbacks import Interrupted

    module = _module(experiment)
    trainer = _trainer(config, folder)
    sampler = StepSampler(
        len(experiment.train),
        config.data.batch_size,
        config.trainer.max_steps,
        config.seed,
        rank=trainer.global_rank,
        ranks=trainer.world_size,
    )
    if resume:
        sampler.first_step = steps_done(last)
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    save_config(config, folder / "config.yaml")
    started = time.monotonic()
    number = None
    try:
        trainer.fit(
            module,
            training_loader(SampleList(experiment.train), sampler, config.data.num_workers),
            evaluation_loader(SampleList(experiment.valid), config.data.valid_batch_size),
            ckpt_path=last if resume else None,
            weights_only=True,
        )
    except Interrupted as stop:
        number = stop.number
    return Outcome(folder, trainer.global_step, time.monotonic() - started, number)


def parse_duration(text: str) -> datetime.timedelta:
    """``90s``, ``10m``, ``2h``, ``1d12h`` as a time.

    Raises:
        InputError: for anything else.
    """
    if not re.fullmatch(r"(\d+(\.\d+)?[dhms])+", text):
        raise InputError(
            f"{text!r} is not a time", key="trainer.max_time", mend="write 90s, 10m, 2h or 1d12h"
        )
    units = {"d": "days", "h": "hours", "m": "minutes", "s": "seconds"}
    parts = {units[unit]: float(number) for number, _, unit in re.findall(r"(\d+(\.\d+)?)([dhms])", text)}
    return datetime.timedelta(**parts)


def _check_trainer(config: RunConfig) -> None:
    """Refuse what Lightning would refuse after the run folder is made."""
    from lightning.pytorch.accelerators import AcceleratorRegistry

    if config.trainer.max_time is not None:
        parse_duration(config.trainer.max_time)
    device = config.trainer.device
    known = {"auto", "gpu", *AcceleratorRegistry.available_accelerators()}
    if device not in known:
        raise InputError(
            f"no device is called {device!r}", key="trainer.device", mend=did_you_mean(device, known)
        )
    accelerator = "cuda" if device == "gpu" and not torch.backends.mps.is_available() else device
    if accelerator in AcceleratorRegistry and not AcceleratorRegistry.get(accelerator).is_available():
        raise InputError(f"this machine has no {device}", key="trainer.device", mend="give auto or cpu")


def load_split(config: RunConfig) -> tuple[list[Frame], list[Frame]]:
    """The training and the validation structures that a configuration names."""
    data = config.data
    train = load_frames(data.train)
    if data.valid is not None:
        return train, load_frames(data.valid)
    if re.fullmatch(r"builtin:[^/,@]+", data.train):
        return train, load_frames(f"{data.train}/valid")
    structures = [i for i, frame in enumerate(train) if not is_isolated_atom(frame)] or list(
        range(len(train))
    )
    if len(structures) < 2:
        raise InputError(
            "one structure cannot be split", file=data.train, key="data.valid", mend="give --valid DATA"
        )
    count = min(max(1, round(data.valid_fraction * len(structures))), len(structures) - 1)
    chosen = set(np.random.default_rng(config.seed).permutation(structures)[:count].tolist())
    return (
        [frame for i, frame in enumerate(train) if i not in chosen],
        [frame for i, frame in enumerate(train) if i in chosen],
    )


def _reference_frames(data: DataSection) -> list[Frame]:
    given = data.energy_references
    if isinstance(given, str) and given not in ("auto", "isolated", "least_squares", "none"):
        frames = load_frames(given)
        if not isolated_atoms(frames):
            raise InputError(
                "no structure of one atom with an energy and no periodic direction",
                file=given,
                key="data.energy_references",
            )
        return frames
    if data.train.startswith("builtin:"):
        return []
    return []


def _labels(data: DataSection, frames: Sequence[Frame]) -> tuple[str, ...]:
    present = [label for label in LABELS if any(getattr(frame, label) is not None for frame in frames)]
    if data.labels != "auto":
        missing = [label for label in data.labels if label not in present]
        if missing:
            raise InputError(
                f"no training structure has {' or '.join(missing)}",
                file=data.train,
                key="data.labels",
                mend=f"the data have {', '.join(present) or 'no labels'}; name the keys with ?energy_key=...",
            )
        return tuple(data.labels)
    if "energy" not in present and "forces" not in present:
        raise InputError(
            "no training structure has an energy or forces",
            file=data.train,
            key="energy",
            mend="name the keys with ?energy_key=...&forces_key=...",
        )
    return tuple(present)


def _with_labels(frame: Frame, labels: Sequence[str]) -> Frame:
    """The frame without its other labels."""
    return replace(
        frame,
        energy=frame.energy if "energy" in labels else None,
        forces=frame.forces if "forces" in labels else None,
        stress=frame.stress if "stress" in labels else None,
    )


def _coverage(name: str, frames: Sequence[Frame]) -> str:
    counts = [sum(getattr(frame, label) is not None for frame in frames) for label in LABELS]
    atoms = sum(len(frame.numbers) for frame in frames)
    found = ", ".join(
        f"{label} {count}/{len(frames)}" for label, count in zip(LABELS, counts, strict=True) if count
    )
    return f"{name}: {len(frames)} structures, {atoms} atoms; labels: {found or 'none'}"


def _references(
    config: RunConfig, frames: Sequence[Frame], species: Sequence[str], atoms: dict[str, float]
) -> EnergyReferences:
    given = config.data.energy_references
    if isinstance(given, dict):
        return references_from_atoms(given, species, "given")
    if given == "none" or not any(frame.energy is not None for frame in frames):
        return EnergyReferences(np.zeros(len(species)), "none", len(species))
    if given == "auto" and config.data.train.startswith("builtin:"):
        from pimlip_zoo.datasets.builtin import builtin_atom_energies

        name = config.data.train.removeprefix("builtin:").split("/")[0].split("@")[0]
        atoms = {**builtin_atom_energies(name), **atoms}
    if given == "least_squares" or (given == "auto" and not all(symbol in atoms for symbol in species)):
        references = fit_references(frames, species)
        if references.rank < len(species):
            log.warning(
                "the compositions determine %d of %d energy references; the shortest solution is taken, and other "
                "compositions will be off (give isolated atoms with data.energy_references)",
                references.rank,
                len(species),
            )
        return references
    return references_from_atoms(atoms, species, "isolated atoms")


def _potential(
    config: RunConfig, frames: Sequence[Frame], species: tuple[str, ...], references: EnergyReferences
) -> tuple[Potential, list[Batch]]:
    section = config.potential
    if section.scale == "run":
        raise InputError("there is no run to take it from", key="potential.scale", mend="give --from RUN")
    options: dict[str, Any] = {}
    cutoff = config.model.configure().cutoff
    samples = [frame_to_sample(frame, species, cutoff) for frame in frames]
    if config.model.configure().avg_num_neighbors is None:
        options["avg_num_neighbors"] = average_neighbours(samples, cutoff)
    dtype = getattr(torch, config.trainer.dtype)
    model = config.model.info.model(config.model.configure(**options), species).to(dtype)
    scale = (force_rms(frames) or 1.0) if section.scale == "forces_rms" else float(section.scale)
    repulsion = None
    if section.zbl:
        from pimlip_zoo.nn.zbl import ZBL

        repulsion = ZBL(species, cutoff=cutoff)
    potential = Potential(
        model,
        energy_references=torch.as_tensor(references.energies),
        scale=scale,
        repulsion=repulsion,
        trainable_scale=section.trainable_scale,
    )
    return potential, samples


def _fine_tuned(
    config: RunConfig,
    frames: Sequence[Frame],
    found: Sequence[str],
    atoms: dict[str, float],
    checkpoint: Path | None,
) -> tuple[Potential, list[Batch], EnergyReferences]:
    """The potential of the run that is fine-tuned, with what the configuration changes about it."""
    section, given = config.finetune, config.data.energy_references
    assert section.run is not None
    potential = start_from(
        checkpoint or section.run,
        found,
        extend=section.extend_species,
        dtype=getattr(torch, config.trainer.dtype),
        trainable_scale=config.potential.trainable_scale,
    )
    if config.model.configure() != potential.model.config:
        raise InputError(
            "the options of the model are not those of the run",
            file=section.run,
            key="model",
            mend="let load_config take them from there",
        )
    samples = [frame_to_sample(frame, potential.species, potential.cutoff) for frame in frames]
    new = [
        s for s, e in zip(potential.species, potential.energy_references.tolist(), strict=True) if np.isnan(e)
    ]
    if checkpoint is not None:
        references = set_references(potential, {}, "the checkpoint")
    elif isinstance(given, dict):
        references = set_references(potential, given, "given")
    elif given not in ("auto", "least_squares"):
        references = set_references(potential, atoms, "isolated atoms")
    else:
        references = set_references(potential, {s: e for s, e in atoms.items() if s in new}, "the run")
        if section.refit_references:
            references = refit_references(potential, samples)
    missing = [s for s, e in zip(potential.species, references.energies, strict=True) if np.isnan(e)]
    if missing:
        raise InputError(
            f"no energy reference for {', '.join(missing)}",
            key="data.energy_references",
            mend="give a table, isolated atoms, or refit_references: true",
        )
    freeze(potential, section.freeze)
    parameter_groups(potential, 1.0, section.learning_rates)  # complains of patterns that match nothing
    return potential, samples, references


def _weak_term(
    config: RunConfig, potential: Potential, labels: Sequence[str], samples: Sequence[Batch]
) -> WeakTerm | None:
    """The weakly supervised losses of the run, checked against its data."""
    from pimlip_zoo.training.checkpoint import load_potential

    weak, species, direct = config.weak, potential.species, potential.is_direct
    pool: list[Batch] = []
    if weak.unlabelled is not None:
        if not chosen_terms(weak, direct=direct):
            raise InputError(
                "no loss looks at unlabelled structures",
                key="weak.unlabelled",
                mend="choose one with --weak or --set weak.terms.NAME.weight=...",
            )
        reach = potential.cutoff + list_skin(weak, species, potential.cutoff, direct=direct)
        pool = [frame_to_sample(frame, species, reach) for frame in load_frames(weak.unlabelled)]
    check_weak(weak, species, labels, [*samples, *pool], direct=direct)
    return build_weak_term(
        weak,
        potential,
        species,
        direct=direct,
        force_weight=config.loss.forces.weight if "forces" in labels else None,
        pool=pool,
        ensemble=[load_potential(run) for run in weak.ensemble],
        seed=config.seed,
    )


def _module(experiment: Experiment) -> PotentialTraining:
    from pimlip_zoo.training.module import PotentialTraining

    config = experiment.config
    section = config.optimizer

    def optimizer(module: Potential) -> torch.optim.Optimizer:
        return torch.optim.AdamW(
            parameter_groups(module, section.lr, config.finetune.learning_rates),
            lr=section.lr,
            betas=section.betas,
            weight_decay=section.weight_decay,
            amsgrad=section.amsgrad,
            foreach=True,
        )

    weak = experiment.weak
    terms = [*loss_terms(config, experiment.labels), *experiment.extra_terms]
    return PotentialTraining(
        experiment.potential,
        terms if weak is None else [*terms, weak],
        optimizer,
        learning_rate_factor(
            config.schedule.name,
            warmup_steps=config.schedule.warmup_steps,
            total_steps=config.trainer.max_steps,
            final=config.schedule.final,
        ),
        forces="forces" in experiment.labels,
        virial="stress" in experiment.labels,
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
        },
    )


def _counts(frames: Sequence[Frame]) -> dict[str, int]:
    counts = dataclasses.asdict(coverage(frames))
    return {name: count for name, count in counts.items() if isinstance(count, int)}


def _versions() -> dict[str, str]:
    """Of what a result depends on."""
    import platform
    from importlib.metadata import version

    packages = ("pimlip-zoo", "torch", "e3nn", "lightning", "numpy")
    return {**{name: version(name) for name in packages}, "python": platform.python_version()}


def _trainer(config: RunConfig, folder: Path) -> pl.Trainer:
    import sys

    import lightning.pytorch as pl
    from lightning.pytorch.callbacks import EarlyStopping
    from lightning.pytorch.loggers import TensorBoardLogger

    from pimlip_zoo.training.callbacks import (
        AveragedWeights,
        GracefulStop,
        KeepBest,
        KeepLast,
        MetricsTable,
        PlainProgress,
        Progress,
    )

    # Lightning's chatter about accelerators and defaults is not the user's business.
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    section = config.trainer
    last = folder / "checkpoints" / "last.ckpt"
    terminal = sys.stderr.isatty()
    callbacks: list[Any] = [
        MetricsTable(folder / "metrics.csv"),
        KeepBest(
            dirpath=folder / "checkpoints",
            filename="best",
            monitor="valid_score",
            save_top_k=1,
            enable_version_counter=False,
        ),
        KeepLast(last),
        GracefulStop(last),
        Progress() if terminal else PlainProgress(section.max_steps),
    ]
    if section.ema_decay > 0:
        callbacks.insert(0, AveragedWeights(section.ema_decay))
    if section.patience is not None:
        callbacks.append(EarlyStopping("valid_score", patience=section.patience))
    logger = TensorBoardLogger(folder, name="", version="tensorboard") if section.tensorboard else False
    return pl.Trainer(
        accelerator="auto" if section.device == "auto" else section.device,
        devices=section.devices,
        num_nodes=section.nodes,
        max_steps=section.max_steps,
        max_time=parse_duration(section.max_time) if section.max_time is not None else None,
        val_check_interval=min(section.valid_every, section.max_steps),
        check_val_every_n_epoch=None,
        gradient_clip_val=section.gradient_clip,
        num_sanity_val_steps=0,
        inference_mode=False,
        use_distributed_sampler=False,
        logger=logger,
        callbacks=callbacks,
        enable_model_summary=False,
        enable_progress_bar=terminal,
        log_every_n_steps=50,
        default_root_dir=folder,
    )


def steps_done(checkpoint: Path) -> int:
    """The optimiser steps of a training checkpoint."""
    from pimlip_zoo.training.checkpoint import read_checkpoint

    return int(read_checkpoint(checkpoint)["global_step"])
