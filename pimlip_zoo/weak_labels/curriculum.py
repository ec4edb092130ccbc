"""The cheap level first, then the difference model's labels: a student that begins where pre-training ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import PositiveInt

from pimlip_zoo.weak_labels.distill import Distill, DistillOptions
from pimlip_zoo.weak_labels.pretrain import STAGE, PretrainStageOptions, pretrain_stage
from pimlip_zoo.weak_labels.recipe import recipe

if TYPE_CHECKING:
    from pimlip_zoo.experiment import Outcome
    from pimlip_zoo.experiment.stages import Run


class CurriculumOptions(DistillOptions):
    """Options of the curriculum; ``steps`` are those of each difference model and of each student before the last."""

    pretrain_steps: PositiveInt = 5000
    """Of pre-training on the cheap level's labels of the pool."""


@recipe("curriculum", options=CurriculumOptions)
class Curriculum(Distill):
    """Pre-train on the cheap level, then learn a difference model's labels and the reference labels together.

    The stage ``pretrain`` is that of the recipe of this name; what follows is :class:`Distill`, whose student begins
    with the weights of this stage.
    """

    options: CurriculumOptions

    def train(self, run: Run) -> Outcome:
        """Pre-training, teachers, and the run as a student from the pre-trained weights."""
        if not run.begun:
            stage = PretrainStageOptions(
                steps=self.options.pretrain_steps,
                learning_rate=self.options.learning_rate,
                stress=self.options.stress,
                reuse=self.options.reuse,
            )
            outcome = pretrain_stage(run, stage)
            if outcome.signal is not None:
                return outcome
            run.take_weights(STAGE)
        return super().train(run)

    def steps_before(self) -> int:
        """Those of pre-training, teachers and earlier students."""
        return self.options.pretrain_steps + super().steps_before()
