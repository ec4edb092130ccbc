"""Training on two levels of theory at once: a second readout for the weak labels, thrown away afterwards."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import nn

from pimlip_zoo.datasets.neighbours import frame_to_sample
from pimlip_zoo.graph import AtomGraph, Batch, Predictions, graph_to, stress_from_virial
from pimlip_zoo.losses.base import Evaluated, LossTerm, LossValue, PotentialLike
from pimlip_zoo.losses.pool import Pool, step_generator
from pimlip_zoo.losses.supervised import atom_counts
from pimlip_zoo.weak_labels.recipe import Recipe, StressOptions, recipe
from pimlip_zoo.weak_labels.twin import readout_names, twin_of

if TYPE_CHECKING:
    from pimlip_zoo.experiment import Outcome
    from pimlip_zoo.experiment.stages import Run


class SharedHeadOptions(StressOptions):
    """Options of training on two levels at once."""

    weight: PositiveFloat = 1.0
    """Factor of the loss on weak labels."""
    batch_size: PositiveInt = 10
    """Weakly labelled structures in a step."""


@recipe("shared_head", options=SharedHeadOptions)
class SharedHead(Recipe[SharedHeadOptions]):
    """Train on both levels together, with two readouts on the same features."""

    def train(self, run: Run) -> Outcome:
        """The run with the weak labels beside the reference ones, asked of a second head."""
        terms = (*run.experiment.extra_terms, self.term(run))
        return run.train(replace(run.experiment, extra_terms=terms))

    def term(self, run: Run) -> SecondHead:
        """The loss on the weak labels."""
        experiment, potential = run.experiment, run.experiment.potential
        frames = run.pool(shift="energy" in experiment.labels)
        samples = [frame_to_sample(frame, potential.species, potential.cutoff) for frame in frames]
        loss = experiment.config.loss
        return self.head(
            Pool(samples, self.options.batch_size, "weak.labels.pool"),
            potential,
            energy_weight=loss.energy_per_atom.weight,
            force_weight=loss.forces.weight,
            stress_weight=loss.stress.weight if "stress" in run.learnt(self.options, frames) else 0.0,
            weight=self.options.weight,
            seed=experiment.config.seed,
        )

    def head(self, pool: Pool, potential: nn.Module, **options: Any) -> SecondHead:
        """What stands for the cheap level."""
        return SharedFeatures(pool, potential, **options)


class SecondHead(LossTerm):
    """Weak labels, asked of a second head beside the potential.

    The potential stands for the reference level, the second head for the cheap one, so that what the levels share is
    learnt from the many cheap labels. What is exported is the potential alone.

    Args:
        pool: structures with cheap energies and forces.
        energy_weight: of the squared energy error per atom.
        force_weight: of the squared force error by component.
        stress_weight: of the squared stress error by component, where structures have one; 0: not computed.
        weight: of the term.
        seed: of the batches.
    """

    def __init__(
        self,
        pool: Pool,
        *,
        energy_weight: float = 1.0,
        force_weight: float = 1.0,
        stress_weight: float = 0.0,
        weight: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__("second_head", weight)
        self.pool = pool
        self.energy_weight, self.force_weight, self.seed = energy_weight, force_weight, seed
        self.stress_weight = stress_weight
        self.steps = 0

    def get_extra_state(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {"steps": self.steps}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """See :meth:`get_extra_state`."""
        self.steps = state["steps"]

    def predict(self, potential: PotentialLike, graph: AtomGraph, *, virial: bool = False) -> Predictions:
        """What the cheap level is; the virial where it is asked for."""
        raise NotImplementedError

    def forward(self, evaluated: Evaluated) -> LossValue:
        """See :class:`LossTerm`; the batch of reference labels is not looked at."""
        drawn = self.pool.draw(step_generator(self.seed, self.steps if self.training else -1))
        if self.training:
            self.steps += 1
        device, potential = evaluated.predictions.energy.device, cast("PotentialLike", evaluated.potential)
        graph = graph_to(drawn.graph, device)
        predicted = self.predict(potential, graph, virial=self.stress_weight > 0)
        count = atom_counts(Batch(graph, drawn.labels)).to(device)
        energy = (predicted.energy - drawn.labels.energy.to(device)) / count
        forces = predicted.forces - drawn.labels.forces.to(device)
        total = self.energy_weight * energy.square().mean() + self.force_weight * forces.square().mean()
        if self.stress_weight > 0:
            stress = stress_from_virial(predicted.virial, graph.cell) - drawn.labels.stress.to(device)
            known = ~torch.isnan(stress)
            total = total + self.stress_weight * stress.masked_fill(
                ~known, 0.0
            ).square().sum() / known.sum().clamp_min(1)
        return LossValue(total, torch.ones_like(total))


class SharedFeatures(SecondHead):
    """The cheap level has readouts of its own on the same features: multi-fidelity learning.

    Args:
        pool: as :class:`SecondHead`.
        potential: the one that is trained. A copy shares all of its parameters but those of the readouts
            (``AtomicEnergyModel.readout_modules``), which start as the potential's.
        options: as :class:`SecondHead`.

    Raises:
        InputError: when the architecture does not say what its readouts are.
    """

    def __init__(self, pool: Pool, potential: nn.Module, **options: Any) -> None:
        super().__init__(pool, **options)
        self.names = readout_names(potential)
        twin = twin_of(potential, self.names)
        self.readouts = nn.ParameterList(twin.get_parameter(name) for name in self.names)
        self._twin = (twin,)  # no submodule: what it shares is the potential's

    def predict(self, potential: PotentialLike, graph: AtomGraph, *, virial: bool = False) -> Predictions:  # noqa: ARG002
        """See :class:`SecondHead`."""
        twin = self._twin[0].to(graph.positions.device)
        result: Predictions = twin(graph, forces=True, virial=virial)
        return result
