"""Difference learning: a correction to the cheap level, which then runs at inference, too."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from pimlip_zoo.weak_labels.calculators import check_pin, pinned
from pimlip_zoo.weak_labels.offsets import subtract_labels
from pimlip_zoo.weak_labels.recipe import Recipe, RecipeOptions, recipe

if TYPE_CHECKING:
    from pimlip_zoo.experiment import Experiment
    from pimlip_zoo.experiment.stages import Preparation

log = logging.getLogger("pimlip_zoo")


@recipe("delta")
class Delta(Recipe[RecipeOptions]):
    """Learn the difference to a cheap calculator, which is added again whenever the potential is used."""

    samples = False

    def learns(self, labels: Sequence[str]) -> Sequence[str]:
        """Those of the reference that the cheap calculator has, too."""
        return labels

    def prepare(self, run: Preparation) -> Experiment:
        """The run, its labels made differences."""
        check_pin(run.calculator, run.difference_to)
        train, valid = (subtract_labels(frames, run.cheap_labels(frames)) for frames in run.split)
        if any(f.stress is not None for f in run.split[0]) and all(f.stress is None for f in train):
            log.warning("%s gives no stress: the labels' stress is not trained on", run.calculator.name)
        # The difference has no isolated atoms: its references are fitted.
        experiment = run.prepare(
            split=(train, valid), data={"energy_references": "least_squares", "check_references": False}
        )
        calculator = run.calculator
        return replace(experiment, baseline={"calculator": pinned(calculator), "version": calculator.version})
