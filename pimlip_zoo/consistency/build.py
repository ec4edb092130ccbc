"""From the options of weak supervision to loss terms; what cannot work is refused here, with the reason."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from pimlip_zoo.consistency.adversarial import AlongForceError, AlongModes, AlongVariance
from pimlip_zoo.consistency.config import PerturbationConfig, ScheduleConfig, TermConfig, WeakConfig
from pimlip_zoo.consistency.displacements import (
    Gaussian,
    LocalMask,
    Perturbation,
    RandomStrain,
    SpeciesScaled,
    Sphere,
    UniformCube,
)
from pimlip_zoo.consistency.loss import Part, WeakTerm
from pimlip_zoo.consistency.residuals import RESIDUALS
from pimlip_zoo.consistency.schedules import Constant, Decay, Schedule, TiedToError, WarmUp
from pimlip_zoo.consistency.teacher import EmaTeacher
from pimlip_zoo.errors import InputError, did_you_mean
from pimlip_zoo.graph import Batch, edge_vectors
from pimlip_zoo.losses.pool import Pool

if TYPE_CHECKING:
    from torch import nn

    from pimlip_zoo.losses.base import PotentialLike

__all__ = [
    "build_perturbation",
    "build_schedule",
    "build_weak_term",
    "check_weak",
    "chosen_terms",
    "list_skin",
]

log = logging.getLogger("pimlip_zoo")


def build_perturbation(config: PerturbationConfig, species: Sequence[str]) -> Perturbation:
    """The distribution of displacements that the options describe.

    Raises:
        InputError: for a factor of a species that the model does not have.
    """
    amplitude = config.amplitude
    inner: Perturbation
    if config.name == "uniform":
        inner = UniformCube(amplitude)
    elif config.name == "gaussian":
        inner = Gaussian(amplitude)
    elif config.name == "sphere":
        inner = Sphere(amplitude)
    elif config.name == "force_error":
        inner = AlongForceError(amplitude)
    elif config.name == "variance":
        inner = AlongVariance(amplitude)
    else:
        inner = AlongModes(amplitude, config.name, config.iterations)
    if config.species is not None:
        for symbol in config.species:
            if symbol not in species:
                raise InputError(
                    f"the model has no {symbol}",
                    key="weak.perturbation.species",
                    mend=did_you_mean(symbol, species),
                )
        inner = SpeciesScaled(inner, [config.species.get(symbol, 1.0) for symbol in species])
    return inner if config.local_radius is None else LocalMask(inner, config.local_radius)


def build_schedule(config: ScheduleConfig) -> Schedule:
    """The schedule that the options describe."""
    if config.name == "warm_up":
        return WarmUp(config.steps, config.start)
    if config.name == "decay":
        return Decay(config.steps, config.start, config.last)
    if config.name == "tied_to_error":
        return TiedToError(config.power, config.reference)
    return Constant()


def chosen_terms(config: WeakConfig, *, direct: bool) -> dict[str, TermConfig]:
    """The terms with a weight, less those that this force head has no use for."""
    return {name: term for name, term in config.active.items() if direct or term.heads != "direct"}


def list_skin(config: WeakConfig, species: Sequence[str], cutoff: float, *, direct: bool) -> float:
    """Å by which neighbour lists have to reach beyond the cutoff for every displaced and strained copy."""
    chosen = chosen_terms(config, direct=direct)
    skin = 0.0
    if any(name not in ("curl", "strain_first_order", "strain_trapezoid") for name in chosen):
        skin = build_perturbation(config.perturbation, species).max_relative_displacement
    if any(name.startswith("strain") for name in chosen):
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
        key = f"weak.terms.{name}"
        needed = RESIDUALS[name].labels if name in RESIDUALS else "none"
        if needed == "forces" and "forces" not in labels:
            raise InputError(
                "needs force labels, and the training data have none", key=key, mend="leave the term out"
            )
        if (needed != "none" or name == "noisy_labels") and "energy" not in labels:
            raise InputError("needs energy labels, and the training data have none", key=key)
        if name == "curl" and not direct:
            raise InputError(
                "forces are the gradient of an energy and have no curl",
                key=key,
                mend="leave the term out, or train with --forces direct",
            )
        if name.startswith("strain"):
            _refuse_molecules(samples, key)
    if not any(name != "curl" and not name.startswith("strain") for name in chosen):
        return
    perturbation = build_perturbation(config.perturbation, species)
    if perturbation.needs_force_labels and "forces" not in labels:
        raise InputError(
            "displacements along the force error need force labels, and the training data have none",
            key="weak.perturbation.name",
            mend="use uniform, gaussian or sphere",
        )
    if perturbation.needs_ensemble and len(config.ensemble) < 2:
        raise InputError(
            f"displacements along the variance need at least 2 runs, {len(config.ensemble)} given",
            key="weak.ensemble",
        )
    shortest = _shortest_bond(samples)
    if perturbation.max_displacement > 0.5 * shortest:
        raise InputError(
            f"atoms would move by up to {perturbation.max_displacement:.3g} Å, more than half of the "
            f"shortest bond ({shortest:.3g} Å)",
            key="weak.perturbation.amplitude",
            mend="lower it",
        )


def build_weak_term(
    config: WeakConfig,
    potential: nn.Module,
    species: Sequence[str],
    *,
    direct: bool,
    force_weight: float | None,
    pool: Sequence[Batch] = (),
    ensemble: Sequence[PotentialLike] = (),
    seed: int = 0,
) -> WeakTerm | None:
    """The weak losses of a run as one term; None where there is none.

    Args:
        config: the options, checked by :func:`check_weak`.
        potential: the one to be trained.
        species: its chemical symbols.
        direct: whether forces come from a head of their own.
        force_weight: of the supervised force loss; None where there is none.
        pool: unlabelled structures, their lists widened.
        ensemble: potentials for displacements along the variance.
        seed: of the displacements.
    """
    chosen = chosen_terms(config, direct=direct)
    if not chosen:
        return None
    for name in config.active.keys() - chosen.keys():
        log.info("weak loss %s is left out: it is for direct force heads", name)
    parts = [Part(name, term, build_schedule(term.schedule)) for name, term in chosen.items()]
    return WeakTerm(
        parts,
        build_perturbation(config.perturbation, species),
        strain=RandomStrain(config.strain) if any(name.startswith("strain") for name in chosen) else None,
        force_weight=1.0 if force_weight is None else force_weight,
        stiffness=config.denoising_stiffness,
        fraction=config.fraction,
        pool=Pool(pool, config.unlabelled_batch_size) if pool else None,
        teacher=EmaTeacher(potential, config.teacher_decay) if config.teacher == "ema" else None,
        ensemble=ensemble,
        seed=seed,
    )


def _refuse_molecules(samples: Sequence[Batch], key: str) -> None:
    for index, sample in enumerate(samples):
        if (sample.graph.cell.abs().amax(dim=(1, 2)) == 0).any():
            raise InputError(
                f"structure {index} is a molecule, which has no cell to strain",
                key=key,
                mend="leave the term out, or train on periodic structures only",
            )


def _shortest_bond(samples: Sequence[Batch]) -> float:
    shortest = float("inf")
    for sample in samples:
        if sample.graph.edge_index.shape[1]:
            shortest = min(shortest, float(torch.linalg.vector_norm(edge_vectors(sample.graph), dim=1).min()))
    return shortest
