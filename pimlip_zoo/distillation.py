"""Labels from an ensemble of trained potentials: the mean, weighted by how much the members agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from pimlip_zoo.datasets.frame import Frame
from pimlip_zoo.errors import InputError
from pimlip_zoo.models.potential import Potential
from pimlip_zoo.weak_stages import predict_labels

__all__ = ["ensemble_labels"]


def ensemble_labels(
    potentials: Sequence[Potential], frames: Sequence[Frame], *, scale: float = 0.1, batch_size: int = 32
) -> list[Frame]:
    """Label structures with the mean of several potentials.

    A structure's weight is ``1 / (1 + (s / scale)²)``, s the root mean square over force components of the members'
    standard deviation; with one member every weight is 1.

    Args:
        potentials: the members, at least one.
        frames: structures; their own labels are replaced.
        scale: eV/Å, spread at which a structure counts half.
        batch_size: structures evaluated at once.

    Returns:
        Frames whose ``info`` holds ``force_spread`` (eV/Å) and ``energy_spread`` (eV).

    Raises:
        InputError: without potentials, for a scale that is not positive, or an element that a member does not know.
    """
    if not potentials:
        raise InputError("there is no potential to ask", key="runs")
    if not scale > 0:
        raise InputError(f"the scale is {scale}", key="--scale", mend="give a number > 0 in eV/Å")
    members = [predict_labels(potential, frames, batch_size) for potential in potentials]
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
                stress=None,
                weight=1.0 / (1.0 + (force_spread / scale) ** 2),
                info={**frame.info, "force_spread": force_spread, "energy_spread": energy_spread},
            )
        )
    return labelled
