"""Pre-training followed by a run that is held to the cheap level's curvature: an ablation, not part of the package.

Hessian-vector products of the cheap level at the labelled structures, as differences of its forces along random
directions (projected Hessian learning, arXiv 2603.04523), and the potential's by the same differences. Importing this
registers the recipe `curvature`.
"""

from dataclasses import replace

import numpy as np
import torch
from pydantic import PositiveFloat, PositiveInt

from pimlip_zoo.graph import collate, graph_to
from pimlip_zoo.losses.base import LossTerm, LossValue
from pimlip_zoo.losses.pool import step_generator
from pimlip_zoo.weak_labels import recipe
from pimlip_zoo.weak_labels.pretrain import STAGE, Pretrain, PretrainOptions, pretrain_stage

STEP = 0.01
"""Å by component (root mean square), to either side."""


class CurvatureOptions(PretrainOptions):
    """Options of the ablation."""

    curvature: PositiveFloat = 0.0025
    """Weight of the squared error of ``H v`` in eV/Å², v of unit root mean square: that of forces 0.05 Å away."""
    directions: PositiveInt = 4
    """Of each labelled structure."""
    batch: PositiveInt = 2
    """Directions of a step."""


@recipe("curvature", options=CurvatureOptions)
class CurvatureRecipe(Pretrain):
    """Pre-train; then the labels, and the cheap level's curvature at the same structures."""

    def train(self, run):
        """The stage `pretrain`, then the run with one more loss."""
        if not run.begun:
            outcome = pretrain_stage(run, self.options)
            if outcome.signal is not None:
                return outcome
            run.take_weights(STAGE)
        rng = np.random.default_rng(run.experiment.config.seed)
        ends = []
        for frame in run.experiment.frames:
            for _ in range(self.options.directions):
                v = rng.normal(size=frame.positions.shape)
                v -= v.mean(axis=0)
                v *= STEP / np.sqrt(np.mean(v * v))
                ends += [replace(frame, positions=frame.positions + sign * v) for sign in (1, -1)]
        samples = run.samples(run.cheap_labels(ends))
        options = self.options
        term = Curvature(samples, options.batch, options.curvature, run.experiment.config.seed)
        return run.train(replace(run.experiment, extra_terms=(*run.experiment.extra_terms, term)))


class Curvature(LossTerm):
    """Squared error of the difference of forces across each structure, per twice the step."""

    def __init__(self, samples, batch, weight, seed):
        super().__init__("curvature", weight)
        self.samples, self.batch, self.seed, self.steps = samples, batch, seed, 0

    def get_extra_state(self):
        """What a resumed run needs."""
        return {"steps": self.steps}

    def set_extra_state(self, state):
        """See above."""
        self.steps = state["steps"]

    def forward(self, evaluated):
        """The batch of labels is not looked at."""
        generator = step_generator(self.seed, self.steps if self.training else -1)
        self.steps += self.training
        drawn = torch.randperm(len(self.samples) // 2, generator=generator)[: self.batch].tolist()
        ends = [self.samples[2 * i + side] for side in (0, 1) for i in drawn]
        batch = collate(ends)
        device = evaluated.predictions.energy.device
        forces = evaluated.potential(graph_to(batch.graph, device), forces=True).forces
        error = forces - batch.labels.forces.to(device)
        half = len(error) // 2
        product = (error[:half] - error[half:]) / (2 * STEP)
        value = product.square().mean()
        return LossValue(value, torch.ones_like(value))
