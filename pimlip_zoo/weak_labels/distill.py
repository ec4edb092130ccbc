"""Distillation: a difference model labels sampled structures for a student that stands alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from pydantic import Field, PositiveFloat, PositiveInt

from pimlip_zoo.datasets.dataset import MadeSamples
from pimlip_zoo.datasets.frame import Frame
from pimlip_zoo.errors import InputError
from pimlip_zoo.losses.base import PotentialLike
from pimlip_zoo.weak_labels.ensemble import ensemble_labels
from pimlip_zoo.weak_labels.offsets import add_labels
from pimlip_zoo.weak_labels.pool import PoolOptions
from pimlip_zoo.weak_labels.recipe import Recipe, StageOptions, StressOptions, recipe

if TYPE_CHECKING:
    from pimlip_zoo.experiment import Experiment, Outcome
    from pimlip_zoo.experiment.stages import Run

LABEL_SHARE = 0.3
"""Of what a distilled student sees, how much are reference labels."""


class DistillOptions(StageOptions, StressOptions):
    """Options of distillation."""

    label_share: float = Field(default=LABEL_SHARE, gt=0, lt=1)
    """Of what the student sees, how much are reference labels; they are repeated to reach it, each once at least."""
    energy_weight: PositiveFloat | None = None
    """Of the energies (``loss.energy_per_atom.weight``) where students learn; None: the run's."""
    teachers: PositiveInt = 1
    """Difference models of different seeds, whose mean teaches."""
    agreement: PositiveFloat | None = None
    """eV/Å, spread of the teachers' forces at which a structure counts half; None: all count the same."""
    iterations: PositiveInt = 1
    """Rounds of sampling; each after the first samples with the student of the one before."""

    def unread(self, *, losses: bool) -> Mapping[str, str]:  # noqa: ARG002
        """See :class:`RecipeOptions`."""
        return {} if self.teachers > 1 else {"agreement": "one teacher agrees with itself"}


@recipe("distill", options=DistillOptions)
class Distill(Recipe[DistillOptions]):
    """Let a difference model label sampled structures for a student that needs no cheap calculator.

    A teacher is a difference model (stages ``teacher``, ``teacher-2``, ...); the structures that they label are sampled
    by the cheap calculator. In further rounds a student (stage ``student-K``) samples more structures: the teachers are
    asked where a student goes.
    """

    def check(self, pool: PoolOptions) -> None:
        """Given structures are no place where a student could go."""
        if pool.sampled.given and self.options.iterations > 1:
            raise InputError(
                "further rounds sample with a student, and given structures are not sampled",
                key="weak.labels.iterations",
                hint="choose weak.labels.pool.method=md, displaced or both",
            )

    def train(self, run: Run) -> Outcome:
        """Teachers, students of earlier rounds, and the run as the last student."""
        teachers: list[PotentialLike] = []
        for number in range(self.options.teachers):
            name = "teacher" if number == 0 else f"teacher-{number + 1}"
            config = run.stage_config(self.options, len(run.experiment.train))
            config = config.model_copy(update={"seed": config.seed + 1000 * number})
            outcome = run.stage(name, run.prepare("delta", config), reuse=self.options.reuse)
            if outcome.signal is not None:
                return outcome
            teachers.append(run.trained(name, difference=True))
        taught = self._taught(run, teachers, run.pool(shift=False))
        for number in range(1, self.options.iterations):
            name, student = f"student-{number}", self._student(run, taught)
            config = run.stage_config(self.options, len(student.train))
            outcome = run.stage(name, replace(student, config=config, weak=()))
            if outcome.signal is not None:
                return outcome
            run.take_weights(name)
            taught += self._taught(run, teachers, run.pool_of(name))
        return run.train(self._student(run, taught))

    def steps_before(self) -> int:
        """Those of teachers and earlier students."""
        return (self.options.teachers + self.options.iterations - 1) * self.options.steps

    def _taught(self, run: Run, teachers: Sequence[PotentialLike], pool: Sequence[Frame]) -> list[Frame]:
        return run.once(lambda: teach(teachers, pool, self.options.agreement))

    def _student(self, run: Run, taught: Sequence[Frame]) -> Experiment:
        options = self.options
        return with_taught(
            run, options, taught, share=options.label_share, energy_weight=options.energy_weight
        )


def with_taught(
    run: Run,
    options: StressOptions,
    taught: Sequence[Frame],
    *,
    share: float = LABEL_SHARE,
    energy_weight: float | None = None,
) -> Experiment:
    """The run with taught structures beside the labelled ones, which are repeated to have their share.

    Args:
        run: of the student.
        options: of the recipe: whether stress is learnt.
        taught: labelled by a teacher at the level of the reference labels.
        share: of what the student sees, how much are reference labels.
        energy_weight: of energies in its loss; None: that of the run.
    """
    experiment = run.experiment
    samples = run.samples(taught)
    repeats = max(1, round(share / (1.0 - share) * len(samples) / len(experiment.train)))
    run.scale_to(taught)
    mixed = MadeSamples([*samples, *(list(experiment.train) * repeats)])
    learnt = tuple(sorted({*experiment.labels, *run.learnt(options, taught)}))
    config = run.config_for(len(mixed), learnt)
    if energy_weight is not None:
        settings = config.model_dump()
        settings["loss"]["energy_per_atom"]["weight"] = energy_weight
        config = type(config).model_validate(settings)
    return replace(experiment, config=config, train=mixed, labels=learnt)


def teach(
    teachers: Sequence[PotentialLike], pool: Sequence[Frame], agreement: float | None = None
) -> list[Frame]:
    """The cheap calculator's labels, corrected by the mean of difference models.

    Args:
        teachers: at least one.
        pool: structures with the cheap calculator's labels.
        agreement: eV/Å, spread of the teachers' forces at which a structure counts half; None: all count the same.
    """
    corrections = ensemble_labels(teachers, pool, scale=agreement)
    corrected = zip(add_labels(pool, corrections), corrections, strict=True)
    return [replace(frame, weight=correction.weight) for frame, correction in corrected]
