"""What a loss is: a named, weighted term that returns a sum and a count."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

from torch import Tensor, nn

from pimlip_zoo.errors import InputError
from pimlip_zoo.graph import AtomGraph, Batch, Predictions

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["LossTerm", "LossValue", "PotentialLike"]


class PotentialLike(Protocol):
    """What a loss may ask of a potential."""

    @property
    def species(self) -> Sequence[str]:
        """Chemical symbols."""

    def __call__(self, graph: AtomGraph, *, forces: bool = True, virial: bool = True) -> Predictions:
        """Predict."""


class LossValue(NamedTuple):
    """A loss as a sum and what it was summed over: averages over batches and ranks stay exact."""

    total: Tensor
    """Scalar."""
    count: Tensor  # type: ignore[assignment]
    """Scalar, the (weighted) number of labels that entered; zero where there was none."""

    def mean(self) -> Tensor:
        """``total / count``, and zero (with a gradient of zero) where nothing entered."""
        return self.total / self.count.clamp_min(1e-12)


class LossTerm(nn.Module):
    """One term of the loss.

    Args:
        name: under which it is logged.
        weight: its factor in the total loss.

    Raises:
        InputError: for a negative weight.
    """

    def __init__(self, name: str, weight: float = 1.0) -> None:
        super().__init__()
        if not weight >= 0:
            raise InputError(f"the weight is {weight}", key=f"loss.{name}.weight", mend="give a number >= 0")
        self.name = name
        self.weight = float(weight)

    def forward(self, potential: PotentialLike, batch: Batch, predictions: Predictions) -> LossValue:
        """The term's value on a batch, without its weight.

        Args:
            potential: for terms that evaluate further structures.
            batch: graph and labels.
            predictions: of ``potential`` on ``batch.graph``, with every quantity that is trained on.
        """
        raise NotImplementedError
