"""What a loss is: a named, weighted term that says what it wants to see and returns a sum and a count."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

from pydantic import NonNegativeFloat
from torch import Tensor, nn

from pimlip_zoo.errors import InputError
from pimlip_zoo.graph import AtomGraph, Batch, Predictions
from pimlip_zoo.registry import Registered, Registry
from pimlip_zoo.section import Section

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pimlip_zoo.consistency.sampling import ConsistencySampling
    from pimlip_zoo.consistency.surface import Reads, Surface

LEVEL_NAME = r"\w[\w.+-]*"
"""What the name of a level of theory may be, as a regular expression: it is part of names of files."""


class PotentialLike(Protocol):
    """What a loss may ask of a potential."""

    @property
    def species(self) -> Sequence[str]:
        """Chemical symbols."""

    @property
    def cutoff(self) -> float:
        """Å."""

    @property
    def is_direct(self) -> bool:
        """Whether forces come from a head of their own."""

    def __call__(self, graph: AtomGraph, *, forces: bool = True, virial: bool = True) -> Predictions:
        """Predict."""


class LossValue(NamedTuple):
    """A loss as a sum and what it was summed over: a mean over the batches of several ranks is exact.

    With ``trainer.accumulate`` an optimiser step averages the means of its batches, as torch and Lightning do. A term
    that draws a batch of its own (another level of theory, replay) gives the mean over that, and ranks average these.
    """

    total: Tensor
    """Scalar."""
    count: Tensor  # type: ignore[assignment]
    """Scalar, the (weighted) number of labels that entered; zero where there was none."""

    def mean(self) -> Tensor:
        """``total / count``, and zero (with a gradient of zero) where nothing entered."""
        return self.total / self.count.clamp_min(1e-12)


class Step(NamedTuple):
    """How far a training is."""

    number: int = 0
    """Optimiser steps done: what schedules and moving averages count."""
    batch: int = 0
    """Batches done, of which an optimiser step takes several where gradients are accumulated: what is random is new in
    each of them."""


@dataclass(frozen=True)
class Requests:
    """What a term wants to see."""

    forces: bool = False
    """Forces of the labelled structures."""
    virial: bool = False
    """Virials of the labelled structures."""
    sampling: ConsistencySampling | None = None
    """Who chooses structures and displacements; terms with the same one see the same copies."""
    reads: Reads | None = None
    """Which copies are looked at; None: none at this step."""


@dataclass(frozen=True)
class Evaluated:
    """What a training step has evaluated, the same for every term."""

    batch: Batch
    """The labelled structures."""
    predictions: Predictions
    """Of the potential on these, with every quantity that a term wants to see."""
    potential: PotentialLike | None = None
    """For terms that evaluate further structures by themselves."""
    surface: Surface | None = None
    """The copies that terms want to see; None: no term wants any at this step."""
    step: Step = field(default_factory=Step)


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
            raise InputError(f"the weight is {weight}", key=f"loss.{name}.weight", hint="give a number >= 0")
        self.name = name
        self.weight = float(weight)

    def requests(self, batch: Batch, step: Step) -> Requests:  # noqa: ARG002
        """What the term wants to see of a batch at a step."""
        return Requests()

    def factor(self, step: Step) -> float:  # noqa: ARG002
        """What the weight is multiplied by at a step."""
        return 1.0

    def levels(self) -> Mapping[str, Mapping[str, str]]:
        """Levels of theory beside the potential's that the term teaches, by name; the run keeps them.

        Returns:
            For each level, which of the potential's parameters it has of its own: their names, and those of the
            term's values that stand for them.
        """
        return {}

    def forward(self, evaluated: Evaluated) -> LossValue:
        """The term's value on a batch, without weight and factor.

        Args:
            evaluated: what the step has evaluated.
        """
        raise NotImplementedError


class LossOptions(Section):
    """The options of a supervised loss, beside its weight."""

    weight: NonNegativeFloat = 1.0
    """Factor in the total loss; 0: not trained on."""

    def unread(self) -> Mapping[str, str]:
        """Options that change nothing beside the others, and why."""
        return {}


@dataclass(frozen=True)
class LossInfo(Registered):
    """A supervised loss; it is called with the options, each by its name."""

    label: str
    """The label that it needs: energy, forces or stress."""


LOSSES: Registry[LossInfo] = Registry(
    "supervised loss", "pimlip_zoo.losses", ("pimlip_zoo.losses.supervised",)
)

LossClass = TypeVar("LossClass", bound=type[LossTerm])


def loss(
    name: str, *, label: str, options: type[LossOptions] = LossOptions
) -> Callable[[LossClass], LossClass]:
    """Class decorator that makes a supervised loss known under a name.

    Args:
        name: what users write after ``loss``; the term has to have the same one.
        label: what it needs: energy, forces or stress.
        options: the type of its options; the class takes each by its name, the weight among them.

    Raises:
        InputError: when another class has the name already.
    """
    return LOSSES.registering(name, lambda cls: LossInfo(name, cls, options, label))
