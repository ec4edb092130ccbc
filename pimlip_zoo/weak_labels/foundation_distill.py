"""From a foundation model and a few labels to a small potential: fine-tune, sample, label, train the student."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from pydantic import PositiveInt

from pimlip_zoo.errors import InputError
from pimlip_zoo.weak_labels.distill import with_taught
from pimlip_zoo.weak_labels.recipe import Recipe, StressOptions, recipe

if TYPE_CHECKING:
    from pimlip_zoo.experiment import Experiment, Outcome
    from pimlip_zoo.experiment.stages import Preparation, Run

log = logging.getLogger("pimlip_zoo")

KEY = "weak.labels.calculator"


class FoundationDistillOptions(StressOptions):
    """Options of distillation of a foundation model."""

    steps: PositiveInt | None = None
    """Of the fine-tuning; None: what the training recipe finetune chooses for so many labels."""
    lora: PositiveInt | None = None
    """Rank of the updates of the foundation model's maps; None: its weights are trained."""


@recipe("foundation_distill", options=FoundationDistillOptions)
class FoundationDistill(Recipe[FoundationDistillOptions]):
    """Fine-tune a foundation model on the labels; it samples and labels a pool, and teaches a small student.

    The calculator is the foundation model, ``run:RUN``. The stage ``teacher`` is its fine-tuning; the structures are
    sampled by the fine-tuned model, so that they are where its dynamics go, and the run is the student, which is
    trained on them and on the labels.
    """

    def prepare(self, run: Preparation) -> Experiment:
        """Refuse what is no run before anything is done."""
        _foundation(run.labels.calculator)
        return run.prepare()

    def train(self, run: Run) -> Outcome:
        """The stage ``teacher``, its pool, the student."""
        options = {"trainer.max_steps": self.options.steps, "finetune.lora": self.options.lora}
        teacher = run.fine_tuning(_foundation(run.labels.calculator), options, stage="teacher")
        outcome = run.stage("teacher", teacher)
        if outcome.signal is not None:
            return outcome
        taught = run.taught_by("teacher")
        log.info("%d structures sampled and labelled by the fine-tuned model", len(taught))
        return run.train(with_taught(run, self.options, taught))

    def steps_before(self) -> int:
        """Those of the fine-tuning, where they were given."""
        return self.options.steps or 0


def _foundation(calculator: str) -> str:
    if not calculator.startswith("run:"):
        raise InputError(
            f"{calculator} is no potential that could be fine-tuned",
            key=KEY,
            hint="give run:RUN, a run folder such as `pimlip-zoo import` makes one of a foundation model",
        )
    return calculator.removeprefix("run:")
