"""Labels from trained potentials: the mean of several, weighted by how much they agree."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from pimlip_zoo.datasets.frame import Frame
from pimlip_zoo.datasets.neighbours import frames_to_batch
from pimlip_zoo.errors import InputError
from pimlip_zoo.graph import stress_from_virial
from pimlip_zoo.losses.base import PotentialLike


def ensemble_labels(
    potentials: Sequence[PotentialLike],
    frames: Sequence[Frame],
    *,
    scale: float | None = 0.1,
) -> list[Frame]:
    """Label structures with the mean of several potentials.

    A structure's weight is ``1 / (1 + (s / scale)²)``, s the root mean square over force components of the members'
    standard deviation; with one member every weight is 1.

    Args:
        potentials: the members, at least one.
        frames: structures; their own labels are replaced.
        scale: eV/Å, spread at which a structure counts half; None: each counts as it did.

    Returns:
        Frames whose ``info`` holds ``force_spread`` (eV/Å) and ``energy_spread`` (eV).

    Raises:
        InputError: without potentials, for a scale that is not positive, or an element that a member does not know.
    """
    if not potentials:
        raise InputError("there is no potential to ask", key="runs")
    if scale is not None and not scale > 0:
        raise InputError(f"the scale is {scale}", key="--scale", hint="give a number > 0 in eV/Å")
    members = [predict_labels(potential, frames) for potential in potentials]
    labelled = []
    for index, frame in enumerate(frames):
        energies = np.array([member[index].energy for member in members], dtype=np.float64)
        forces = np.stack([np.asarray(member[index].forces) for member in members])
        degrees = 1 if len(members) > 1 else 0
        force_spread = float(np.sqrt(np.mean(np.var(forces, axis=0, ddof=degrees)))) if forces.size else 0.0
        energy_spread = float(np.std(energies, ddof=degrees))
        labelled.append(
            replace(
                frame,
                energy=float(energies.mean()),
                forces=forces.mean(axis=0),
                stress=_mean_stress([member[index] for member in members]),
                weight=frame.weight if scale is None else math.hypot(1.0, force_spread / scale) ** -2,
                info={**frame.info, "force_spread": force_spread, "energy_spread": energy_spread},
            )
        )
    return labelled


def _mean_stress(frames: Sequence[Frame]) -> NDArray[np.float64] | None:
    stresses = [frame.stress for frame in frames if frame.stress is not None]
    return np.mean(stresses, axis=0) if len(stresses) == len(frames) else None


def predict_labels(potential: PotentialLike, frames: Sequence[Frame], batch_size: int = 32) -> list[Frame]:
    """The structures with the potential's energies and forces as labels, and its stress where they are crystals."""
    labelled: list[Frame] = []
    for start in range(0, len(frames), batch_size):
        part = frames[start : start + batch_size]
        batch = frames_to_batch(part, potential.species, potential.cutoff)
        with torch.no_grad():
            crystals = any(frame.pbc.all() for frame in part)
            predictions = potential(batch.graph, forces=True, virial=crystals)
        stress = stress_from_virial(predictions.virial, batch.graph.cell).numpy() if crystals else None
        counts = [len(frame.numbers) for frame in part]
        forces = np.split(predictions.forces.cpu().numpy(), np.cumsum(counts)[:-1])
        labelled += [
            replace(
                frame,
                energy=energy,
                forces=forces[place].copy(),
                stress=stress[place].copy() if stress is not None and frame.pbc.all() else None,
            )
            for place, (frame, energy) in enumerate(zip(part, predictions.energy.tolist(), strict=True))
        ]
    return labelled
