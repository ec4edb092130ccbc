"""Difference learning: a correction to the cheap level, which then runs at inference, too."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pimlip_zoo.weak_labels.offsets import subtract_labels
from pimlip_zoo.weak_labels.recipe import Recipe, RecipeOptions, recipe

if TYPE_CHECKING:
    from pimlip_zoo.experiment import Experiment
    from pimlip_zoo.experiment.stages import Preparation

__all__ = ["Delta"]


@recipe("delta")
class Delta(Recipe[RecipeOptions]):
    """Learn the difference to a cheap calculator, which is added again whenever the potential is used."""

    samples = False

    def prepare(self, run: Preparation) -> Experiment:
        """The run, its labels made differences."""
        train, valid = (subtract_labels(frames, run.cheap_labels(frames)) for frames in run.split)
        # The difference has no isolated atoms: its references are fitted.
        experiment = run.prepare(
            split=(train, valid), data={"energy_references": "least_squares", "check_references": False}
        )
        calculator = run.calculator
        return replace(experiment, baseline={"calculator": calculator.name, "version": calculator.version})
