"""What a recipe for weak labels is: a class that says how a run learns from cheap physics.

A recipe is asked twice: to prepare the run, before its potential is built, and to train it, in as many stages as it
likes. Whoever wants another one writes a class, in this package or in another one with the entry-point group
``pimlip_zoo.recipes``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Generic, TypeVar

from pydantic import PositiveFloat, PositiveInt

from pimlip_zoo.registry import BASELINE, Registered, Registry
from pimlip_zoo.section import Section

if TYPE_CHECKING:
    from pimlip_zoo.experiment import Experiment, Outcome
    from pimlip_zoo.experiment.stages import Preparation, Run
    from pimlip_zoo.weak_labels.pool import PoolOptions


class RecipeOptions(Section):
    """The options of a recipe; they stand beside ``weak.labels.method``."""

    def learns(self, labels: Sequence[str]) -> Sequence[str]:  # noqa: ARG002
        """See :meth:`Recipe.learns`: any, as long as nothing else is said."""
        return ("energy", "forces", "stress")

    def unread(self, *, losses: bool) -> Mapping[str, str]:  # noqa: ARG002
        """Options that change nothing beside the others, and why.

        Args:
            losses: whether the run has consistency losses.
        """
        return {}


Options = TypeVar("Options", bound=RecipeOptions)


class Recipe(Generic[Options]):
    """A way of learning from weak labels. As it stands it is a training without them.

    Args:
        options: of the type that it was registered with.
    """

    samples: bool = True
    """Whether structures are sampled and labelled; the sampling looks at ``weak.unlabelled``, too."""

    def __init__(self, options: Options) -> None:
        self.options = options

    def check(self, pool: PoolOptions) -> None:
        """Refuse what cannot work, before anything is read.

        Args:
            pool: how structures are to be sampled.

        Raises:
            InputError: for options that contradict each other.
        """

    def calculators(self, given: str) -> Sequence[str]:
        """Which calculators it asks; they are looked up before anything is read.

        Args:
            given: that of ``weak.labels.calculator``.
        """
        return (given,)

    def files(self) -> Mapping[str, str]:
        """DATA with weak labels that it reads, by a name; a resumed run has to find the same structures there."""
        return {}

    def prepare(self, run: Preparation) -> Experiment:
        """The run before its first step: other labels, another configuration, or as it is.

        Args:
            run: what it is prepared from.
        """
        return run.prepare()

    def train(self, run: Run) -> Outcome:
        """Carry the run out, with stages before it or losses beside its own.

        A stage that is complete is not repeated when the run is resumed, see
        :meth:`~pimlip_zoo.experiment.stages.Run.stage`.

        Args:
            run: the prepared run and its folder.

        Returns:
            How the run ended, or the stage that was interrupted.
        """
        return run.train()

    def learns(self, labels: Sequence[str]) -> Sequence[str]:
        """Labels, of the reference or weak, that the run or a stage learns with the losses of the configuration.

        A loss on others changes nothing.

        Args:
            labels: which reference labels are learnt.
        """
        return self.options.learns(labels)

    def learning_rate_factor(self, labels: Sequence[str]) -> float:  # noqa: ARG002
        """What the learning rate of the run itself is multiplied by.

        Args:
            labels: which reference labels it is trained on.
        """
        return 1.0

    def steps_before(self) -> int:
        """How many steps all stages before the run have together, for a plain run of equal length."""
        return 0


class StageOptions(RecipeOptions):
    """The options of a recipe that trains something before the run."""

    steps: PositiveInt = 5000
    """Of a stage before the run: pre-training, or the difference model that teaches."""
    learning_rate: PositiveFloat | None = None
    """Of a stage before the run; None: the run's."""
    reuse: bool = True
    """Take a stage from the cache of weak labels where the very same one has been trained before."""


class StressOptions(RecipeOptions):
    """The options of a recipe that learns the cheap level's stress of crystals, too; see ``Run.learnt``."""

    stress: bool | None = None
    """Learn the cheap level's stress of crystals, too, where it has one; None: where the run learns stress."""

    def learns(self, labels: Sequence[str]) -> Sequence[str]:
        """Energies and forces always."""
        return (*labels, "energy", "forces", *(("stress",) if self.stress else ()))


RECIPES: Registry[Registered] = Registry(
    "recipe for weak labels",
    "pimlip_zoo.recipes",
    tuple(
        f"pimlip_zoo.weak_labels.{name}"
        for name in (
            "pretrain",
            "delta",
            "distill",
            "shared_head",
            "levels",
            "curriculum",
            "foundation_distill",
        )
    ),
    left={"second_head": BASELINE},
)

RecipeClass = TypeVar("RecipeClass", bound=type)


def recipe(
    name: str, *, options: type[RecipeOptions] = RecipeOptions
) -> Callable[[RecipeClass], RecipeClass]:
    """Class decorator that makes a recipe known under a name.

    Args:
        name: what users write after ``weak.labels.method``.
        options: the type of its options, all of which have defaults.

    Raises:
        InputError: when another class has the name already.
    """
    return RECIPES.registering(name, lambda cls: Registered(name, cls, options))
