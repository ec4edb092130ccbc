"""Two levels at once, the cheap one being the potential plus a correction with features of its own."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

from pimlip_zoo.graph import AtomGraph, Predictions
from pimlip_zoo.losses.base import PotentialLike
from pimlip_zoo.losses.pool import Pool
from pimlip_zoo.models.potential import Potential
from pimlip_zoo.weak_labels import recipe
from pimlip_zoo.weak_labels.shared_head import SecondHead, SharedHead, SharedHeadOptions

__all__ = ["SecondHeadRecipe", "SecondPotential"]


@recipe("second_head", options=SharedHeadOptions)
class SecondHeadRecipe(SharedHead):
    """Train on both levels together, with a correction for the cheap one beside the model."""

    def head(self, pool: Pool, potential: nn.Module, **options: Any) -> SecondHead:
        """A fresh model of the same kind, scaled as the potential is."""
        torch.manual_seed(options["seed"] + 1)
        whole = cast("Potential", potential)
        model = type(whole.model)(whole.model.config, whole.species).to(whole.model.dtype)
        return SecondPotential(pool, Potential(model, scale=whole.scale.detach().clone()), **options)


class SecondPotential(SecondHead):
    """The cheap level is the potential plus a correction with features of its own: every architecture can do this.

    Args:
        pool: as :class:`SecondHead`.
        correction: a potential of the same species.
        options: as :class:`SecondHead`.
    """

    def __init__(self, pool: Pool, correction: nn.Module, **options: Any) -> None:
        super().__init__(pool, **options)
        self.correction = correction

    def predict(self, potential: PotentialLike, graph: AtomGraph, *, virial: bool = False) -> Predictions:
        """See :class:`SecondHead`."""
        own = potential(graph, forces=True, virial=virial)
        more = cast("PotentialLike", self.correction)(graph, forces=True, virial=virial)
        return Predictions(*(a + b for a, b in zip(own, more, strict=True)))
