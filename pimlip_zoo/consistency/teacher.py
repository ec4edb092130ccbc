"""A slowly moving copy of a potential, whose predictions can be targets."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import cast

import torch
from torch import nn

from pimlip_zoo.graph import AtomGraph, Predictions
from pimlip_zoo.losses.base import PotentialLike


class EmaTeacher(nn.Module):
    """A potential whose weights follow those of another: an exponential moving average.

    Args:
        potential: the one that is followed.
        decay: of the average; smaller in the first steps, ``(1 + n) / (10 + n)``.
    """

    def __init__(self, potential: nn.Module, decay: float) -> None:
        super().__init__()
        self.potential = copy.deepcopy(potential).requires_grad_(requires_grad=False)
        self.decay = decay

    @torch.no_grad()
    def update(self, potential: nn.Module, count: int) -> None:
        """Follow; ``count`` is the number of updates done, the first of which copies."""
        decay = min(self.decay, (1.0 + count) / (10.0 + count)) if count else 0.0
        for average, value in zip(self.potential.parameters(), potential.parameters(), strict=True):
            average.lerp_(value.detach(), 1.0 - decay)

    @property
    def species(self) -> Sequence[str]:
        """Chemical symbols."""
        return cast("PotentialLike", self.potential).species

    @property
    def cutoff(self) -> float:
        """Å."""
        return cast("PotentialLike", self.potential).cutoff

    @property
    def is_direct(self) -> bool:
        """Whether forces come from a head of their own."""
        return cast("PotentialLike", self.potential).is_direct

    def forward(self, graph: AtomGraph, *, forces: bool = True, virial: bool = True) -> Predictions:
        """Predict with the averaged weights."""
        return cast("Predictions", self.potential(graph, forces=forces, virial=virial))
