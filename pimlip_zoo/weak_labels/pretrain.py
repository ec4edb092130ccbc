"""Pre-training on the cheap level: the labels begin where it ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field

from pimlip_zoo.datasets.dataset import MadeSamples
from pimlip_zoo.weak_labels.recipe import Recipe, StageOptions, StressOptions, recipe

if TYPE_CHECKING:
    from pimlip_zoo.experiment import Outcome
    from pimlip_zoo.experiment.stages import Run

STAGE = "pretrain"
"""Name of the stage's folder."""

HELD_AT_MOST = 200
"""Structures of the pool that the stage is validated on: a tenth of it, and no more than these."""


class PretrainStageOptions(StageOptions, StressOptions):
    """What the stage needs to know."""


class PretrainOptions(PretrainStageOptions):
    """Options of pre-training."""

    rate_after: float | None = Field(default=None, gt=0, le=1)
    """Factor of the learning rate in the run that follows. None: 1, or 0.1 where reference energies are the only
    labels, since a fast run on these forgets the forces that it was taught."""
    terms: Literal["after", "throughout"] = "after"
    """Whether the consistency losses begin with the reference labels or with the weak ones."""

    def unread(self, *, losses: bool) -> Mapping[str, str]:
        """See :class:`RecipeOptions`."""
        return {} if losses else {"terms": "the run has no consistency losses"}


@recipe("pretrain", options=PretrainOptions)
class Pretrain(Recipe[PretrainOptions]):
    """Train on cheaply labelled structures first, and go on from there with the reference labels."""

    def train(self, run: Run) -> Outcome:
        """The stage ``pretrain``, then the run."""
        if not run.begun:
            outcome = pretrain_stage(run, self.options, consistency=self.options.terms == "throughout")
            if outcome.signal is not None:
                return outcome
            run.take_weights(STAGE)
        return run.train()

    def learning_rate_factor(self, labels: Sequence[str]) -> float:
        """Slower where energies are the only labels."""
        if self.options.rate_after is not None:
            return self.options.rate_after
        return 1.0 if {"forces", "stress"} & set(labels) else 0.1

    def steps_before(self) -> int:
        """Those of the stage."""
        return self.options.steps


def pretrain_stage(run: Run, options: PretrainStageOptions, *, consistency: bool = False) -> Outcome:
    """The stage ``pretrain`` of a run: its potential, trained on the cheap level's labels of the pool.

    Args:
        run: whose potential it is.
        options: length and learning rate of the stage, and whether it learns stress.
        consistency: whether the run's consistency losses begin here.
    """
    pool = run.pool(shift="energy" in run.experiment.labels)
    run.scale_to(pool)
    held = max(1, min(len(pool) // 10, HELD_AT_MOST))
    config = run.stage_config(options, len(pool) - held, consistency=consistency)
    samples, learnt = run.samples(pool, config), run.learnt(options, pool)
    order = np.random.default_rng(config.seed).permutation(len(samples)).tolist()
    stage = replace(
        run.experiment,
        config=config,
        labels=learnt,
        train=MadeSamples(samples[index] for index in order[held:]),
        valid=MadeSamples(samples[index] for index in order[:held]),
        weak=run.weak_terms(config, learnt, samples),
    )
    return run.stage(STAGE, stage, reuse=options.reuse)
