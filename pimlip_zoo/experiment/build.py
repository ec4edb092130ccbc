"""The potential and the losses of a run, built from its configuration and its data."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pimlip_zoo.config import DataSection, LossSection, RunConfig
from pimlip_zoo.consistency.build import build_weak_terms, check_weak, chosen_terms, list_skin
from pimlip_zoo.consistency.config import WeakConfig
from pimlip_zoo.datasets.dataset import FrameDataset, MadeSamples, Samples
from pimlip_zoo.datasets.device_neighbours import check_linker
from pimlip_zoo.datasets.frame import EVEN, Frame
from pimlip_zoo.datasets.frames import as_frames
from pimlip_zoo.datasets.neighbours import frame_to_sample
from pimlip_zoo.datasets.readers import load_frames
from pimlip_zoo.datasets.statistics import (
    EnergyReferences,
    average_neighbours,
    force_rms,
)
from pimlip_zoo.errors import InputError
from pimlip_zoo.experiment.ranks import from_rank_zero
from pimlip_zoo.graph import Batch
from pimlip_zoo.losses.base import LOSSES, LossTerm
from pimlip_zoo.models.potential import Potential
from pimlip_zoo.training.finetune import (
    freeze,
    parameter_groups,
    refit_references,
    set_references,
    start_from,
)
from pimlip_zoo.training.present import Whole, cut_down
from pimlip_zoo.training.replay import Replay, displaced_copies

log = logging.getLogger("pimlip_zoo")

LOOKED_AT = 10_000
"""Structures of a store whose neighbours are counted, and that losses are checked on, before the first step."""


def loss_terms(config: RunConfig, labels: Sequence[str]) -> list[LossTerm]:
    """The supervised terms of a configuration for the labels that are there.

    Raises:
        InputError: when none has a weight, or a loss of another package lacks its label.
    """
    terms: list[LossTerm] = []
    for name, options in config.loss.terms.items():
        info = LOSSES.get(name, key=f"loss.{name}")
        if options.weight > 0 and info.label in labels:
            terms.append(info.make(**dict(options)))
        elif options.weight > 0 and name not in LossSection.model_fields:
            raise InputError(
                f"{name} needs {info.label}, which is not trained on",
                key=f"loss.{name}",
                hint=f"give structures with {info.label}, or leave the loss out",
            )
    if not terms:
        raise InputError("every loss has weight 0", key="loss", hint="give one a positive weight")
    return terms


def samples_of(
    frames: Sequence[Frame], species: tuple[str, ...], cutoff: float, data: DataSection
) -> Samples:
    """Graph samples of the frames: made now for frames in memory, when they are asked for from a store."""
    if data.neighbours != "workers":
        check_linker(data.neighbours)
    if as_frames(frames).source is not None or data.neighbours != "workers":
        return FrameDataset(frames, species, cutoff, cache_bytes=data.cache_mb << 20)
    return MadeSamples(frame_to_sample(frame, species, cutoff) for frame in frames)


def some_of(samples: Samples, seed: int) -> Samples:
    """All samples of a small set; of a large one that is read from a store so many, drawn from the seed."""
    if samples.list_cutoff is None or len(samples) <= LOOKED_AT:
        return samples
    chosen = np.random.default_rng(seed).permutation(len(samples))[:LOOKED_AT]
    return MadeSamples(samples[i] for i in np.sort(chosen).tolist())


def new_potential(
    config: RunConfig, frames: Sequence[Frame], species: tuple[str, ...], references: EnergyReferences
) -> tuple[Potential, Samples]:
    """A potential with random weights, scaled to the data, and the training samples.

    Their neighbour lists are as wide as the consistency losses need them.
    """
    section = config.potential
    if section.scale == "run":
        raise InputError("there is no run to take it from", key="potential.scale", hint="give --from RUN")
    options: dict[str, Any] = {}
    cutoff, direct = config.model.configure().cutoff, config.model.configure().force_head == "direct"
    skin = list_skin(config.weak, species, cutoff, direct=direct)
    samples = samples_of(frames, species, cutoff + skin, config.data)
    if config.model.configure().avg_num_neighbors is None:
        options["avg_num_neighbors"] = from_rank_zero(
            lambda: average_neighbours(some_of(samples, config.seed), cutoff)
        )
    dtype = getattr(torch, config.trainer.dtype)
    model = config.model.info.model(config.model.configure(**options), species).to(dtype)
    scale = (
        from_rank_zero(lambda: force_rms(frames) or 1.0)
        if section.scale == "forces_rms"
        else float(section.scale)
    )
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


def fine_tuned_potential(
    config: RunConfig,
    frames: Sequence[Frame],
    found: Sequence[str],
    atoms: dict[str, float],
    checkpoint: Path | None,
) -> tuple[Potential, Samples, EnergyReferences, Whole | None]:
    """The potential of the run that is fine-tuned, with what the configuration changes about it.

    It has the species of the data alone; what is needed to put the others back comes with it.
    """
    section, given = config.finetune, config.data.energy_references
    assert section.run is not None
    whole = start_from(
        checkpoint or section.run,
        found,
        extend=section.extend_species,
        dtype=getattr(torch, config.trainer.dtype),
        trainable_scale=config.potential.trainable_scale,
    )
    if config.model.configure() != whole.model.config:
        raise InputError(
            "the options of the model are not those of the run",
            file=section.run,
            key="model",
            hint="let load_config take them from there",
        )
    potential, absent = cut_down(whole, _wanted(config, found))
    skin = list_skin(config.weak, potential.species, potential.cutoff, direct=potential.is_direct)
    samples = samples_of(frames, potential.species, potential.cutoff + skin, config.data)
    new = [
        s for s, e in zip(potential.species, potential.energy_references.tolist(), strict=True) if np.isnan(e)
    ]
    if section.extend_species and not new and checkpoint is None:
        raise InputError(
            "the data have no species that the run does not know",
            file=section.run,
            key="finetune.extend_species",
            hint="leave it out",
        )
    if checkpoint is not None:
        references = set_references(potential, {}, "the checkpoint")
    elif isinstance(given, dict):
        references = set_references(potential, given, "given")
    elif given not in ("auto", "least_squares"):
        references = set_references(potential, atoms, "isolated atoms")
    else:
        references = set_references(potential, {s: e for s, e in atoms.items() if s in new}, "the run")
        if section.refit_references:
            references = from_rank_zero(
                lambda: refit_references(potential, list(some_of(samples, config.seed)))
            )
            table = dict(zip(potential.species, references.energies.tolist(), strict=True))
            set_references(potential, table, references.source)
    missing = [s for s, e in zip(potential.species, references.energies, strict=True) if np.isnan(e)]
    if missing:
        raise InputError(
            f"no energy reference for {', '.join(missing)}",
            key="data.energy_references",
            hint="give a table, isolated atoms, or refit_references: true",
        )
    frozen = freeze(potential, section.freeze)
    log.info(
        "fine-tuning %s: energy references: %s; %d species known, %d in the data; %d of %d weights frozen",
        section.run,
        references.source,
        len(whole.species),
        len(set(found) & set(whole.species)),
        frozen,
        sum(parameter.numel() for parameter in potential.model.parameters()),
    )
    if absent is not None:
        log.info(
            "the other %d species keep their %d weights, and cost nothing",
            len(whole.species) - len(potential.species),
            _weights(whole) - _weights(potential),
        )
    if section.lora is not None and config.optimizer.name == "muon":
        raise InputError(
            "muon moves matrices, and with low-rank updates their factors are trained",
            key="finetune.lora",
            hint="--set optimizer.name=adamw",
        )
    parameter_groups(potential, 1.0, section.learning_rates)  # complains of patterns that match nothing
    return potential, samples, references, absent


def _weights(potential: Potential) -> int:
    return sum(parameter.numel() for parameter in potential.model.parameters())


def _wanted(config: RunConfig, found: Sequence[str]) -> set[str]:
    """The species of all structures that the run looks at."""
    from ase.data import chemical_symbols

    files = [config.weak.unlabelled, config.finetune.replay]
    further = [frame for file in files if isinstance(file, str) for frame in load_frames(file)]
    return {
        *found,
        *(chemical_symbols[number] for frame in further for number in set(frame.numbers.tolist())),
    }


def replay_term(config: RunConfig, potential: Potential, frames: Sequence[Frame]) -> LossTerm:
    """The loss that keeps what the run said, see ``finetune.replay``.

    Args:
        config: of the run.
        potential: before its first step.
        frames: training structures.
    """
    section, loss = config.finetune, config.loss
    chosen = (
        load_frames(section.replay)
        if isinstance(section.replay, str)
        else displaced_copies(frames, section.replay or 0, config.seed)
    )
    samples = [frame_to_sample(frame, potential.species, potential.cutoff) for frame in chosen]
    if len(samples) < section.replay_batch and "replay_batch" in section.model_fields_set:
        log.warning(
            "finetune.replay_batch: there are %d structures, so %d are looked at in a step, not %d",
            *(len(samples), len(samples), section.replay_batch),
        )
    weighted = any((frame.weight, frame.label_weights) != (1.0, EVEN) for frame in chosen)
    if weighted and isinstance(section.replay, str):
        log.warning("%s: weights of structures are not looked at, all are replayed alike", section.replay)
    log.info(
        "replay: %d structures (%s) keep the energies and forces of %s: weight %g, %d in a step",
        len(samples),
        section.replay if isinstance(section.replay, str) else "displaced copies of the training structures",
        section.run,
        section.replay_weight,
        min(section.replay_batch, len(samples)),
    )
    return Replay(
        potential,
        samples,
        batch_size=section.replay_batch,
        energy_weight=loss.energy_per_atom.weight,
        force_weight=loss.forces.weight,
        weight=section.replay_weight,
        seed=config.seed,
    )


def unlabelled_frames(
    weak: WeakConfig, species: Sequence[str], *, not_kept: set[str] | None = None
) -> list[Frame]:
    """The structures of ``weak.unlabelled``, if there are any.

    Args:
        weak: the section.
        species: that the potential knows.
        not_kept: see :func:`~pimlip_zoo.datasets.readers.read_frames`.

    Raises:
        InputError: for an element that the potential does not know.
    """
    from ase.data import chemical_symbols

    frames = [] if weak.unlabelled is None else load_frames(weak.unlabelled, not_kept=not_kept)
    for index, frame in enumerate(frames):
        strange = sorted({chemical_symbols[number] for number in frame.numbers} - set(species))
        if strange:
            raise InputError(
                f"no labelled structure has {', '.join(strange)}",
                file=weak.unlabelled,
                frame=index,
                key="species",
                hint="leave it out, or add structures with it to the labelled ones",
            )
    return frames


def weak_terms(
    config: RunConfig, potential: Potential, labels: Sequence[str], samples: Samples
) -> list[LossTerm]:
    """The weakly supervised losses of the run, checked against its data."""
    weak, species, direct = config.weak, potential.species, potential.is_direct
    pool: list[Batch] = []
    chosen = chosen_terms(weak, direct=direct)
    sampled = weak.labels is not None and weak.labels.recipe().samples
    if weak.unlabelled is not None and not chosen and not sampled:
        raise InputError(
            "no loss looks at unlabelled structures",
            key="weak.unlabelled",
            hint="choose one with --weak or --set weak.terms.NAME.weight=...",
        )
    if weak.unlabelled is not None and chosen:
        reach = potential.cutoff + list_skin(weak, species, potential.cutoff, direct=direct)
        pool = [frame_to_sample(frame, species, reach) for frame in unlabelled_frames(weak, species)]
    if chosen:
        from_rank_zero(
            lambda: check_weak(weak, species, labels, [*some_of(samples, config.seed), *pool], direct=direct)
        )
    terms = build_weak_terms(
        weak,
        potential,
        species,
        direct=direct,
        force_weight=config.loss.forces.weight if "forces" in labels else None,
        pool=pool,
        seed=config.seed,
    )
    return [*terms]
