"""Everything a run consists of, before its first step."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from pimlip_zoo.config import RunConfig
from pimlip_zoo.datasets.coverage import isolated_atom_energies
from pimlip_zoo.datasets.dataset import Samples
from pimlip_zoo.datasets.frame import Frame
from pimlip_zoo.datasets.statistics import (
    EnergyReferences,
    check_references,
    species_of,
)
from pimlip_zoo.experiment.build import (
    fine_tuned_potential,
    loss_terms,
    new_potential,
    replay_term,
    samples_of,
    weak_terms,
)
from pimlip_zoo.experiment.data import (
    check_validation,
    chosen_labels,
    counting,
    describe_labels,
    energy_references_of,
    load_split,
    reference_frames,
    several_electrons,
    without_isolated_atoms,
)
from pimlip_zoo.experiment.effects import check_effects
from pimlip_zoo.experiment.ranks import from_rank_zero, join_ranks
from pimlip_zoo.experiment.recipe import complete
from pimlip_zoo.experiment.record import DataRecord, seen_by
from pimlip_zoo.losses.base import LossTerm
from pimlip_zoo.models.potential import Potential
from pimlip_zoo.training.present import Whole

log = logging.getLogger("pimlip_zoo")


@dataclass(frozen=True)
class Experiment:
    """What a run consists of."""

    config: RunConfig
    """The configuration, complete: what was not given is from its recipe."""
    potential: Potential
    """Untrained, or as given to fine-tune."""
    references: EnergyReferences
    """Energy references and where they come from."""
    labels: tuple[str, ...]
    """Which labels are trained on."""
    train: Samples
    """Training samples, their neighbour lists as wide as the weak losses need them."""
    valid: Samples
    """Validation samples."""
    weak: Sequence[LossTerm] = ()
    """Weakly supervised losses."""
    extra_terms: tuple[LossTerm, ...] = ()
    """Further losses."""
    frames: Sequence[Frame] = ()
    """Training structures as they were read."""
    valid_frames: Sequence[Frame] = ()
    """Validation structures as they were read."""
    baseline: dict[str, str] | None = None
    """The calculator, and its version, that the potential is a difference to; None: it stands alone."""
    data: DataRecord | None = None
    """Of the structures as they were read; None: not compared when the run is resumed."""
    whole: Whole | None = None
    """What the potential was cut down from, to the species of the data; None: it has all of its species."""


def prepare(
    config: RunConfig,
    *,
    split: tuple[Sequence[Frame], Sequence[Frame]] | None = None,
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
    join_ranks(config)
    train, valid = map(counting, split or load_split(config))
    references_file = reference_frames(data)
    train, single = without_isolated_atoms(train, keep=bool(references_file))
    atoms = isolated_atom_energies([*references_file, *single])
    labels = chosen_labels(data, train)
    # What is not trained on is not looked at: not for the force scale, not for choosing the best weights.
    train, valid = train.with_labels(labels), valid.with_labels(labels)
    check_validation(data, labels, valid, begun=checkpoint is not None)
    stated, config = config.stated, complete(config, train, labels, valid)
    data = config.data
    loss_terms(config, labels)
    check_effects(config, labels, stated)
    log.info("%s", describe_labels("training", train))
    log.info("%s", describe_labels("validation", valid))
    several = several_electrons(train, embedded=config.model.configure().embed_charge, valid=valid)
    if several is not None:
        log.warning("%s", several)
    species = species_of(train, valid)
    whole = None
    if config.finetune.run is None:
        references = from_rank_zero(lambda: energy_references_of(config, train, species, atoms))
        if data.check_references:
            check_references(train, species, references)
        potential, samples = new_potential(config, train, species, references)
    else:
        potential, samples, references, whole = fine_tuned_potential(
            config, train, species, atoms, checkpoint
        )
        species = potential.species
        if data.check_references:
            check_references(train, species, references)
        _say_if_seen(Path(config.finetune.run), valid)
    valid_samples = samples_of(valid, species, potential.cutoff, data)
    weak = weak_terms(config, potential, labels, samples)
    further = () if config.finetune.replay is None else (replay_term(config, potential, train),)
    return Experiment(
        config,
        potential,
        references,
        labels,
        samples,
        valid_samples,
        weak,
        further,
        train,
        valid,
        whole=whole,
    )


def _say_if_seen(base: Path, valid: Sequence[Frame]) -> None:
    """Say that validation structures are those that the run was trained on that is fine-tuned."""
    found = seen_by(base, valid)
    if found is not None and found["training"]:
        log.warning(
            "%d of %d validation structures are among those that %s was trained on: errors on them are too good "
            "(give others with --valid)",
            *(found["training"], found["structures"], base),
        )
