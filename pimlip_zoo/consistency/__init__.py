"""The physics losses: how far energies and forces of a potential are from agreeing with each other.

What another package needs to add a residual or a displacement is here.
"""

from pimlip_zoo.consistency.displacements import (
    Context,
    Displacement,
    DisplacementOptions,
    displacement,
    remove_mean,
)
from pimlip_zoo.consistency.residuals import evaluate_residuals, residual
from pimlip_zoo.consistency.surface import ORIGIN, STRAINED, D, P, Point, Surface

__all__ = [
    "ORIGIN",
    "STRAINED",
    "Context",
    "D",
    "Displacement",
    "DisplacementOptions",
    "P",
    "Point",
    "Surface",
    "displacement",
    "evaluate_residuals",
    "remove_mean",
    "residual",
]
