"""Weakly supervised losses as terms of the total loss."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from pimlip_zoo.errors import InputError
from pimlip_zoo.graph import AtomGraph, Batch, Labels, Predictions, collate, graph_to, sum_by_structure
from pimlip_zoo.losses.base import LossTerm, LossValue, PotentialLike
from pimlip_zoo.losses.perturbation import Context, Perturbation, RandomStrain, atom_count, remove_mean
from pimlip_zoo.losses.residuals import RESIDUALS, Detach
from pimlip_zoo.losses.schedules import Schedule, TiedToError
from pimlip_zoo.losses.weak_config import TermConfig

__all__ = [
    "EmaTeacher",
    "Pool",
    "WeakPotential",
    "WeakTerm",
    "choose_structures",
    "random_unit",
    "step_generator",
]


class WeakPotential(PotentialLike, Protocol):
    """A potential with :class:`pimlip_zoo.models.weak.PhysicsWeakMixin`."""

    def weak_residuals(
        self,
        names: Sequence[str],
        graph: AtomGraph,
        d: Tensor,
        p: Tensor | None = None,
        *,
        base: Predictions | None = None,
        labels: Labels | None = None,
        teacher: PotentialLike | None = None,
        detach: Mapping[str, Detach],
    ) -> dict[str, Tensor]:
        """Residuals (M,) eV by name."""

    def displaced(
        self, graph: AtomGraph, displacements: Sequence[Tensor], *, forces: bool = True
    ) -> list[Predictions]:
        """Predictions on displaced copies."""

    def strain_first_order(
        self, graph: AtomGraph, strain: Tensor, *, base: Predictions | None = None
    ) -> Tensor:
        """(M,) eV."""

    def strain_trapezoid(
        self, graph: AtomGraph, strain: Tensor, *, base: Predictions | None = None
    ) -> Tensor:
        """(M,) eV."""

    def curl(self, graph: AtomGraph, v: Tensor) -> Tensor:
        """(N, 3) eV/Å²."""


class Pool:
    """Unlabelled structures, some of which every step looks at.

    Args:
        samples: graphs with lists as wide as the training's; their labels are not looked at.
        batch_size: structures per step.
    """

    def __init__(self, samples: Sequence[Batch], batch_size: int) -> None:
        if not samples:
            raise InputError("there is no structure in it", key="weak.unlabelled")
        self.samples, self.batch_size = samples, min(batch_size, len(samples))

    def draw(self, generator: torch.Generator) -> Batch:
        """A batch without repetition."""
        order = torch.randperm(len(self.samples), generator=generator)[: self.batch_size]
        return collate([self.samples[index] for index in order.tolist()])


class EmaTeacher(nn.Module):
    """A potential whose weights follow those of another: an exponential moving average.

    Args:
        potential: the one that is followed.
        decay: of the average; smaller in the first steps, ``(1 + n) / (10 + n)``.
    """

    def __init__(self, potential: nn.Module, decay: float) -> None:
        super().__init__()
        self.potential = copy.deepcopy(potential).requires_grad_(requires_grad=False)
        self.decay = decay

    @torch.no_grad()
    def update(self, potential: nn.Module, count: int) -> None:
        """Follow; ``count`` is the number of updates done, the first of which copies."""
        decay = min(self.decay, (1.0 + count) / (10.0 + count)) if count else 0.0
        for average, value in zip(self.potential.parameters(), potential.parameters(), strict=True):
            average.lerp_(value.detach(), 1.0 - decay)

    @property
    def species(self) -> Sequence[str]:
        """Chemical symbols."""
        return cast("PotentialLike", self.potential).species

    def forward(self, graph: AtomGraph, *, forces: bool = True, virial: bool = True) -> Predictions:
        """Predict with the averaged weights."""
        return cast("Predictions", self.potential(graph, forces=forces, virial=virial))


@dataclass(frozen=True)
class Part:
    """One residual of a :class:`WeakTerm`."""

    name: str
    config: TermConfig
    schedule: Schedule


class WeakTerm(LossTerm):
    """All consistency losses of a run; they share the displaced copies.

    The value is already weighted: ``Σ_k weight_k · schedule_k · mean(value_k)``, each mean over the
    structures that have the labels that the residual needs. What is random depends on the seed and the step
    alone, so that a resumed run goes on as it would have.

    Args:
        parts: residuals with weights and schedules.
        perturbation: how atoms are displaced.
        strain: how cells are strained.
        force_weight: of the force loss, which weights in units of lambda are relative to.
        stiffness: eV/Å², of the denoising term.
        fraction: share of the structures that is looked at.
        pool: unlabelled structures.
        teacher: takes the target side.
        ensemble: potentials for displacements along their variance.
        seed: of everything random.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        perturbation: Perturbation,
        *,
        strain: RandomStrain | None = None,
        force_weight: float = 1.0,
        stiffness: float = 20.0,
        fraction: float = 1.0,
        pool: Pool | None = None,
        teacher: EmaTeacher | None = None,
        ensemble: Sequence[PotentialLike] = (),
        seed: int = 0,
    ) -> None:
        super().__init__("weak", 1.0)
        self.parts = tuple(parts)
        self.perturbation = perturbation
        self.strain = strain
        self.force_weight, self.stiffness, self.fraction = force_weight, stiffness, fraction
        self.pool = pool
        self.teacher = teacher
        self._ensemble = tuple(ensemble)
        self.seed = seed
        self.steps = 0
        self._error: float | None = None
        self._tied = any(isinstance(part.schedule, TiedToError) for part in self.parts)
        self.values: dict[str, Tensor] = {}
        """Mean of each part on the last batch, without weight, for logging."""

    @property
    def needs_forces(self) -> bool:
        """Whether the predictions on the undisplaced structures should come with forces."""
        zero = (0.0, 0.0)
        return self.perturbation.needs_force_labels or any(
            part.name in RESIDUALS and zero in RESIDUALS[part.name].forces for part in self.parts
        )

    @property
    def needs_virial(self) -> bool:
        """Whether the predictions on the undisplaced structures should come with virials."""
        return any(part.name.startswith("strain") for part in self.parts)

    def get_extra_state(self) -> dict[str, Any]:
        """What a resumed run needs: steps done, running error, references of the schedules."""
        references = [getattr(part.schedule, "reference", None) for part in self.parts]
        return {"steps": self.steps, "error": self._error, "references": references}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """See :meth:`get_extra_state`."""
        self.steps, self._error = state["steps"], state["error"]
        for part, reference in zip(self.parts, state["references"], strict=True):
            if hasattr(part.schedule, "reference"):
                part.schedule.reference = reference

    def forward(self, potential: PotentialLike, batch: Batch, predictions: Predictions) -> LossValue:
        """See :class:`LossTerm`."""
        generator = self._generator()
        if self.training and self.teacher is not None:
            self.teacher.update(cast("nn.Module", potential), self.steps)
        if self._tied:
            self._follow_error(batch, predictions)
        whole = Context(potential, batch, predictions, self._ensemble)
        sums = self._sums(choose_structures(whole, self.fraction, generator), generator)
        if self.pool is not None:
            unlabelled = _without_labels(self.pool.draw(generator), batch)
            names = [part.name for part in self.parts if not _needs_labels(part.name)]
            more = self._sums(
                Context(potential, unlabelled, _no_predictions(unlabelled.graph), self._ensemble),
                generator,
                names,
            )
            for name, (total, count) in more.items():
                sums[name] = (sums[name][0] + total, sums[name][1] + count)
        result = predictions.energy.new_zeros(())
        self.values = {}
        for part in self.parts:
            total, count = sums[part.name]
            mean = total / count.clamp_min(1e-12)
            self.values[part.name] = mean.detach()
            factor = part.config.weight * part.schedule.factor(self.steps, self._error)
            result = result + factor * self._scale(part) * mean
        if self.training:
            self.steps += 1
        count = predictions.energy.new_tensor(float(batch.graph.num_graphs))
        return LossValue(result * count, count)

    def _scale(self, part: Part) -> float:
        if part.config.unit != "lambda" or part.name in ("curl", "noisy_labels", "denoising"):
            return 1.0
        return self.force_weight

    def _sums(
        self, context: Context, generator: torch.Generator, names: Sequence[str] | None = None
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """(sum, count) of the values of each part over structures."""
        parts = [part for part in self.parts if names is None or part.name in names]
        values: dict[str, Tensor] = {}
        graph = context.batch.graph
        base = context.predictions if len(context.predictions.energy) else None
        potential = cast("WeakPotential", context.potential)
        count = atom_count(graph)
        if any(part.name in RESIDUALS for part in parts):
            d = self.perturbation.sample(graph, generator, context)
            p = self.perturbation.sample(graph, generator, context)
            residuals = potential.weak_residuals(
                [part.name for part in parts if part.name in RESIDUALS],
                graph,
                d,
                p,
                base=base,
                labels=context.batch.labels,
                teacher=self.teacher,
                detach={part.name: part.config.detach for part in parts},
            )
            for part in parts:
                if part.name in RESIDUALS:
                    values[part.name] = _in_unit(
                        residuals[part.name], part.config.unit, count, self.perturbation.amplitude
                    )
        for part in parts:
            if part.name not in RESIDUALS:
                values[part.name] = self._other(part, context, base, generator)
        return {part.name: _masked_sum(values[part.name], context.batch.labels.weight) for part in parts}

    def _other(
        self, part: Part, context: Context, base: Predictions | None, generator: torch.Generator
    ) -> Tensor:
        """Values (M,) of a term that is no residual of displaced copies alone."""
        potential, graph = cast("WeakPotential", context.potential), context.batch.graph
        count = atom_count(graph)
        if part.name == "curl":
            return sum_by_structure(
                potential.curl(graph, random_unit(graph, generator)).square().sum(dim=1), graph
            )
        if part.name.startswith("strain"):
            if self.strain is None:
                raise InputError("a strain term needs a distribution of strains", key="weak.strain")
            strain = self.strain.sample(graph, generator)
            function = getattr(potential, part.name)
            residual: Tensor = function(graph, strain, base=base)
            return _in_unit(residual, part.config.unit, count, self.strain.amplitude)
        d = self.perturbation.sample(graph, generator, context)
        (copy_of,) = potential.displaced(graph, [d])
        if part.name == "denoising":
            error = (copy_of.forces + self.stiffness * d).square().sum(dim=1)
            return sum_by_structure(error, graph) / (3.0 * count)
        labels = context.batch.labels
        error = (copy_of.forces - torch.where(labels.forces.isnan(), copy_of.forces, labels.forces)).square()
        forces = sum_by_structure(error.sum(dim=1), graph) / (3.0 * count)
        return forces + _square((copy_of.energy - labels.energy) / count)

    def _generator(self) -> torch.Generator:
        """A new stream for every step and rank; validation always sees the same one."""
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        return step_generator(self.seed, rank, self.steps if self.training else -1)

    def _follow_error(self, batch: Batch, predictions: Predictions) -> None:
        """Running mean of the supervised squared error, (eV/atom)² + (eV/Å)²."""
        with torch.no_grad():
            labels, graph = batch.labels, batch.graph
            error = ((predictions.energy - labels.energy) / atom_count(graph)).square().nanmean().nan_to_num()
            if len(predictions.forces) == len(labels.forces):
                error = error + (predictions.forces - labels.forces).square().nanmean().nan_to_num()
        now = float(error)
        if self.training:
            self._error = now if self._error is None else 0.98 * self._error + 0.02 * now


def step_generator(seed: int, rank: int, step: int) -> torch.Generator:
    """A stream that is determined by these numbers. They are hashed: torch's generator looks at 32 bits."""
    digest = hashlib.blake2b(f"{seed} {rank} {step}".encode(), digest_size=4).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


def random_unit(graph: AtomGraph, generator: torch.Generator) -> Tensor:
    """(N, 3) random directions without mean, of unit norm over each structure."""
    normal = torch.randn(
        graph.positions.shape, generator=generator, device=generator.device, dtype=torch.float64
    )
    v = remove_mean(normal.to(graph.positions.device, graph.positions.dtype), graph)
    square = sum_by_structure(v.square().sum(dim=1), graph)
    return v / square.clamp_min(1e-300).sqrt()[graph.batch].unsqueeze(1)


def choose_structures(context: Context, fraction: float, generator: torch.Generator) -> Context:
    """A random part of the structures, at least one, with their labels and predictions.

    Args:
        context: everything of a batch.
        fraction: share that is kept.
        generator: source of randomness.
    """
    batch, predictions = context.batch, context.predictions
    graph, total = batch.graph, batch.graph.num_graphs
    keep = max(1, round(fraction * total))
    if keep >= total:
        return context
    chosen = torch.randperm(total, generator=generator)[:keep].sort().values.to(graph.batch.device)
    structure = torch.zeros(total, dtype=torch.bool, device=graph.batch.device)
    structure[chosen] = True
    atom = structure[graph.batch]
    edge = atom[graph.edge_index[0]]
    new_atom, new_structure = atom.cumsum(0) - 1, structure.cumsum(0) - 1
    part = AtomGraph(
        positions=graph.positions[atom],
        species=graph.species[atom],
        edge_index=new_atom[graph.edge_index[:, edge]],
        edge_shift=graph.edge_shift[edge],
        cell=graph.cell[structure],
        batch=new_structure[graph.batch[atom]],
        num_graphs=keep,
    )
    labels = batch.labels
    part_labels = Labels(
        labels.energy[structure], labels.forces[atom], labels.stress[structure], labels.weight[structure]
    )
    part_predictions = Predictions(
        predictions.energy[structure],
        predictions.forces[atom] if len(predictions.forces) == len(atom) else predictions.forces,
        predictions.virial[structure] if len(predictions.virial) == total else predictions.virial,
        predictions.atomic_energy[atom],
    )
    return Context(context.potential, Batch(part, part_labels), part_predictions, context.ensemble)


def _in_unit(residual: Tensor, unit: str, count: Tensor, amplitude: float) -> Tensor:
    if unit == "total":
        return _square(residual)
    return _square(residual / (count if unit == "per_atom" else count * amplitude))


def _square(values: Tensor) -> Tensor:
    """Squares; a missing value stays NaN but sends no NaN back, as the square's own gradient would."""
    missing = torch.isnan(values)
    squares = torch.where(missing, torch.zeros_like(values), values).square()
    return torch.where(missing, torch.full_like(values, float("nan")), squares)


def _masked_sum(values: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted sum and sum of weights of the values that are not NaN."""
    known = ~torch.isnan(values.detach())
    return (values[known] * weight[known]).sum(), weight[known].sum()


def _needs_labels(name: str) -> bool:
    return name == "noisy_labels" or (name in RESIDUALS and RESIDUALS[name].labels != "none")


def _without_labels(pool: Batch, like: Batch) -> Batch:
    device = like.graph.positions.device
    graph = graph_to(pool.graph, device)
    nan = float("nan")
    energy = torch.full((graph.num_graphs,), nan, dtype=torch.float64, device=device)
    forces = torch.full_like(graph.positions, nan)
    stress = torch.full_like(graph.cell, nan)
    return Batch(graph, Labels(energy, forces, stress, torch.ones_like(energy)))


def _no_predictions(graph: AtomGraph) -> Predictions:
    empty = graph.positions.new_zeros
    return Predictions(empty(0), empty((0, 3)), empty((0, 3, 3)), empty(0))
