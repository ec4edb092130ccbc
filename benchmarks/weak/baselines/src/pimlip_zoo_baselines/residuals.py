"""What displaced copies are asked for by methods that augment data: labels of the undisplaced, or the way back."""

from __future__ import annotations

import torch
from pydantic import PositiveFloat
from torch import Tensor

from pimlip_zoo.consistency import D, Surface, residual
from pimlip_zoo.section import Section

__all__ = ["DenoisingOptions", "denoising", "noisy_labels"]


@residual("noisy_labels", penalty=True, equation="labels of r asked of r+d, as noisy-nodes augmentation does")
def noisy_labels(s: Surface) -> Tensor:
    """Mean square of the force error by component plus the square of the energy error by atom."""
    # A missing label is filled before the square, whose own gradient would make NaN of it.
    known, count = s.labels.forces, s.atoms
    forces = s.sum((s.F(D) - torch.where(known.isnan(), s.F(D), known)).square()) / (3.0 * count)
    missing = s.E_ref.isnan()
    energy = ((s.E(D) - s.E_ref) / count).masked_fill(missing, 0.0).square()
    return forces + energy.masked_fill(missing, float("nan"))


class DenoisingOptions(Section):
    """Of the denoising term."""

    stiffness: PositiveFloat = 20.0
    """eV/Å², κ."""


@residual(
    "denoising",
    penalty=True,
    equation="F(r+d) = -κ d, the denoising of displaced structures",
    options=DenoisingOptions,
)
def denoising(s: Surface, options: DenoisingOptions = DenoisingOptions()) -> Tensor:  # noqa: B008
    """Mean square of the error by component."""
    error = s.F(D) + options.stiffness * s.displacement(D)
    return s.sum(error.square()) / (3.0 * s.atoms)
