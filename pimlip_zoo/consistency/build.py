"""From the options of weak supervision to loss terms; what cannot work is refused here, with the reason."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch

from pimlip_zoo.consistency.config import PerturbationConfig, ScheduleConfig, TermConfig, WeakConfig
from pimlip_zoo.consistency.displacements import (
    DISPLACEMENTS,
    Displacement,
    LocalMask,
    RandomStrain,
    SpeciesScaled,
)
from pimlip_zoo.consistency.loss import ConsistencyLoss
from pimlip_zoo.consistency.residuals import Residual, get_residual
from pimlip_zoo.consistency.sampling import ConsistencySampling
from pimlip_zoo.consistency.schedules import Constant, Decay, Schedule, WarmUp
from pimlip_zoo.consistency.surface import Reads
from pimlip_zoo.consistency.teacher import EmaTeacher
from pimlip_zoo.errors import InputError, did_you_mean
from pimlip_zoo.graph import Batch, edge_vectors
from pimlip_zoo.losses.pool import Pool

if TYPE_CHECKING:
    from torch import nn


log = logging.getLogger("pimlip_zoo")


def build_displacements(config: PerturbationConfig, species: Sequence[str]) -> Displacement:
    """The distribution of displacements that the options describe.

    Raises:
        InputError: for a factor of a species that the model does not have.
    """
    kind = DISPLACEMENTS.get(config.name, key="weak.perturbation.name")
    inner = kind.make(**config.options().model_dump())
    if config.species is not None:
        for symbol in config.species:
            if symbol not in species:
                raise InputError(
                    f"the model has no {symbol}",
                    key="weak.perturbation.species",
                    hint=did_you_mean(symbol, species),
                )
        inner = SpeciesScaled(inner, [config.species.get(symbol, 1.0) for symbol in species])
    return inner if config.local_radius is None else LocalMask(inner, config.local_radius)


def build_schedule(config: ScheduleConfig) -> Schedule:
    """The schedule that the options describe."""
    made: dict[str, Schedule] = {
        "constant": Constant(),
        "warm_up": WarmUp(config.steps, config.start),
        "decay": Decay(config.steps, config.start, config.last),
    }
    return made[config.name]


def chosen_terms(config: WeakConfig, *, direct: bool) -> dict[str, TermConfig]:
    """The terms with a weight, less those that this force head has no use for."""
    return {name: term for name, term in config.active.items() if direct or term.heads != "direct"}


def list_skin(config: WeakConfig, species: Sequence[str], cutoff: float, *, direct: bool) -> float:
    """Å by which neighbour lists have to reach beyond the cutoff for every displaced and strained copy."""
    reads, skin = _reads(chosen_terms(config, direct=direct)), 0.0
    if reads.displaced:
        skin = build_displacements(config.perturbation, species).max_relative_displacement
    if reads.strained:
        skin = max(skin, RandomStrain(config.strain).max_relative_displacement(cutoff))
    return skin


def check_weak(
    config: WeakConfig,
    species: Sequence[str],
    labels: Sequence[str],
    samples: Sequence[Batch],
    *,
    direct: bool,
) -> None:
    """Refuse what cannot work.

    Args:
        config: the options.
        species: chemical symbols of the model.
        labels: which of energy, forces, stress the training structures have.
        samples: training structures, and those of a pool.
        direct: whether forces come from a head of their own.

    Raises:
        InputError: with the reason.
    """
    chosen = chosen_terms(config, direct=direct)
    for name in chosen:
        _check_term(get_residual(name), labels, samples, direct=direct)
    if not _reads(chosen).displaced:
        return
    displacements = build_displacements(config.perturbation, species)
    if displacements.needs_force_labels and "forces" not in labels:
        raise InputError(
            "such displacements need force labels, and the training data have none",
            key="weak.perturbation.name",
            hint="use uniform, gaussian or sphere",
        )
    shortest = _shortest_bond(samples)
    if displacements.max_displacement > 0.5 * shortest:
        raise InputError(
            f"atoms would move by up to {displacements.max_displacement:.3g} Å, more than half of the "
            f"shortest bond ({shortest:.3g} Å)",
            key="weak.perturbation.amplitude",
            hint="lower it",
        )


def build_weak_terms(
    config: WeakConfig,
    potential: nn.Module,
    species: Sequence[str],
    *,
    direct: bool,
    force_weight: float | None,
    pool: Sequence[Batch] = (),
    seed: int = 0,
) -> list[ConsistencyLoss]:
    """The consistency losses of a run.

    Args:
        config: the options, checked by :func:`check_weak`.
        potential: the one to be trained.
        species: its chemical symbols.
        direct: whether forces come from a head of their own.
        force_weight: of the supervised force loss; None where there is none.
        pool: unlabelled structures, their lists widened.
        seed: of the displacements.
    """
    chosen = chosen_terms(config, direct=direct)
    if not chosen:
        return []
    for name in config.active.keys() - chosen.keys():
        log.info("weak loss %s is left out: it is for direct force heads", name)
    reads = _reads(chosen)
    sampling = ConsistencySampling(
        build_displacements(config.perturbation, species),
        reads=reads,
        strain=RandomStrain(config.strain) if reads.strained else None,
        fraction=config.fraction,
        pool=Pool(pool, config.unlabelled_batch_size, "weak.unlabelled") if pool else None,
        teacher=EmaTeacher(potential, config.teacher_decay) if config.teacher == "ema" else None,
        seed=seed,
    )
    return [
        ConsistencyLoss(
            get_residual(name),
            sampling,
            weight=term.weight,
            unit=term.unit,
            detach=term.detach,
            schedule=build_schedule(term.schedule),
            force_weight=1.0 if force_weight is None else force_weight,
            options=term.options,
        )
        for name, term in chosen.items()
    ]


def _reads(names: Iterable[str]) -> Reads:
    """What several residuals look at."""
    reads = Reads()
    for name in names:
        reads = reads | get_residual(name).reads
    return reads


def _check_term(residual: Residual, labels: Sequence[str], samples: Sequence[Batch], *, direct: bool) -> None:
    key, reads = f"weak.terms.{residual.name}", residual.reads
    if reads.force_label and "forces" not in labels:
        raise InputError(
            "needs force labels, and the training data have none", key=key, hint="leave the term out"
        )
    if (reads.energy_label or reads.force_label) and "energy" not in labels:
        raise InputError("needs energy labels, and the training data have none", key=key)
    if reads.direction and not direct:
        raise InputError(
            "forces are the gradient of an energy and have no curl",
            key=key,
            hint="leave the term out, or train with --forces direct",
        )
    if reads.strained:
        _refuse_molecules(samples, key)


def _refuse_molecules(samples: Sequence[Batch], key: str) -> None:
    for index, sample in enumerate(samples):
        if (sample.graph.cell.abs().amax(dim=(1, 2)) == 0).any():
            raise InputError(
                f"structure {index} is a molecule, which has no cell to strain",
                key=key,
                hint="leave the term out, or train on periodic structures only",
            )


def _shortest_bond(samples: Sequence[Batch]) -> float:
    shortest = float("inf")
    for sample in samples:
        if sample.graph.edge_index.shape[1]:
            shortest = min(shortest, float(torch.linalg.vector_norm(edge_vectors(sample.graph), dim=1).min()))
    return shortest
