"""Pre-training on the cheap level: the labels begin where it ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field

from pimlip_zoo.datasets.dataset import MadeSamples
from pimlip_zoo.weak_labels.recipe import Recipe, StageOptions, StressOptions, recipe

if TYPE_CHECKING:
    from pimlip_zoo.experiment import Outcome
    from pimlip_zoo.experiment.stages import Run

__all__ = ["Pretrain", "PretrainOptions"]

HELD_AT_MOST = 200
"""Structures of the pool that the stage is validated on: a tenth of it, and no more than these."""


class PretrainOptions(StageOptions, StressOptions):
    """Options of pre-training."""

    rate_after: float | None = Field(default=None, gt=0, le=1)
    """Factor of the learning rate in the run that follows. None: 1, or 0.1 where reference energies are the only
    labels, since a fast run on these forgets the forces that it was taught."""
    terms: Literal["after", "throughout"] = "after"
    """Whether the consistency losses begin with the reference labels or with the weak ones."""


@recipe("pretrain", options=PretrainOptions)
class Pretrain(Recipe[PretrainOptions]):
    """Train on cheaply labelled structures first, and go on from there with the reference labels."""

    def train(self, run: Run) -> Outcome:
        """The stage ``pretrain``, then the run."""
        if not run.begun:
            outcome = self._pretrain(run)
            if outcome.signal is not None:
                return outcome
            run.take_weights("pretrain")
        return run.train()

    def _pretrain(self, run: Run) -> Outcome:
        pool = run.pool(shift="energy" in run.experiment.labels)
        run.scale_to(pool)
        held = max(1, min(len(pool) // 10, HELD_AT_MOST))
        throughout = self.options.terms == "throughout"
        config = run.stage_config(self.options, len(pool) - held, consistency=throughout)
        samples, learnt = run.samples(pool, config), run.learnt(self.options, pool)
        order = np.random.default_rng(config.seed).permutation(len(samples)).tolist()
        stage = replace(
            run.experiment,
            config=config,
            labels=learnt,
            train=MadeSamples(samples[index] for index in order[held:]),
            valid=MadeSamples(samples[index] for index in order[:held]),
            weak=run.weak_terms(config, learnt, samples),
        )
        return run.stage("pretrain", stage)

    def learning_rate_factor(self, labels: Sequence[str]) -> float:
        """Slower where energies are the only labels."""
        if self.options.rate_after is not None:
            return self.options.rate_after
        return 1.0 if {"forces", "stress"} & set(labels) else 0.1

    def steps_before(self) -> int:
        """Those of the stage."""
        return self.options.steps
