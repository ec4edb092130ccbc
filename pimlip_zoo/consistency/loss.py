"""Weakly supervised losses as terms of the total loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from pimlip_zoo.consistency.config import TermConfig
from pimlip_zoo.consistency.displaced import choose, displaced_copies, join, trim_edges
from pimlip_zoo.consistency.displacements import Context, Perturbation, RandomStrain, atom_count
from pimlip_zoo.consistency.draw import Draw, choose_structures, join_unlabelled, random_unit
from pimlip_zoo.consistency.residuals import ORIGIN, RESIDUALS, Detach, Point, displacement_at, needs_of
from pimlip_zoo.consistency.schedules import Schedule, TiedToError
from pimlip_zoo.consistency.teacher import EmaTeacher
from pimlip_zoo.errors import InputError
from pimlip_zoo.graph import AtomGraph, Batch, Labels, Predictions, sum_by_structure
from pimlip_zoo.losses.base import LossTerm, LossValue, PotentialLike
from pimlip_zoo.losses.pool import Pool, step_generator

__all__ = ["FEW_EDGES", "Part", "WeakPotential", "WeakTerm"]


_NO_RESIDUALS = ("curl", "noisy_labels", "denoising")
FEW_EDGES = 1000
"""Below this a forward costs about the same whatever its size: energies of copies are then evaluated with forces."""


class WeakPotential(PotentialLike, Protocol):
    """A potential with :class:`pimlip_zoo.consistency.mixin.PhysicsWeakMixin`."""

    @property
    def cutoff(self) -> float:
        """Å."""

    @property
    def is_direct(self) -> bool:
        """Whether forces come from a head of their own."""

    def weak_residuals(
        self,
        names: Sequence[str],
        graph: AtomGraph,
        d: Tensor,
        p: Tensor | None = None,
        *,
        known: tuple[Mapping[Point, Tensor], Mapping[Point, Tensor]],
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
        self._draw: Draw | None = None
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

    def predict(
        self, potential: PotentialLike, batch: Batch, *, forces: bool = True, virial: bool = False
    ) -> Predictions:
        """Predictions on a batch and, in the same forward, on the displaced copies that :meth:`forward` needs.

        One forward instead of two or three is what makes a weak step cheap: small batches are bound by the number of
        operations, not by their size. Without this call, :meth:`forward` evaluates the copies by itself.

        Args:
            potential: the one that is trained.
            batch: structures with labels, their lists wide enough.
            forces: the supervised losses need forces.
            virial: the supervised losses need the virial.
        """
        self._draw = None
        if not self._active():
            graph = trim_edges(batch.graph, cast("WeakPotential", potential).cutoff)
            return potential(graph, forces=forces, virial=virial)
        if self.perturbation.needs_predictions or not any(part.name in RESIDUALS for part in self.parts):
            graph = trim_edges(batch.graph, cast("WeakPotential", potential).cutoff)
            return potential(graph, forces=forces or self.needs_forces, virial=virial or self.needs_virial)
        draw = self._new_draw(potential, batch, None)
        everything, predictions = self._evaluate_together(
            cast("WeakPotential", potential), draw, forces=forces, virial=virial or self.needs_virial
        )
        draw.predictions = everything
        self._draw = draw
        return predictions

    def forward(self, potential: PotentialLike, batch: Batch, predictions: Predictions) -> LossValue:
        """See :class:`LossTerm`."""
        if self.training and self.teacher is not None:
            self.teacher.update(cast("nn.Module", potential), self.steps)
        if self._tied:
            self._follow_error(batch, predictions)
        result, self.values = predictions.energy.new_zeros(()), {}
        if self._active():
            draw, self._draw = self._draw, None
            if draw is None or draw.labelled is not batch:
                draw = self._new_draw(potential, batch, predictions)
            parts, values, known = self._values(cast("WeakPotential", potential), draw)
            weight = draw.batch.labels.weight
            means = values @ weight / (known.to(weight.dtype) @ weight).clamp_min(1e-12)
            self.values = {part.name: mean for part, mean in zip(parts, means.detach(), strict=True)}
            result = means @ means.new_tensor([self._factor(part) for part in parts])
        if self.training:
            self.steps += 1
        count = predictions.energy.new_tensor(float(batch.graph.num_graphs))
        return LossValue(result * count, count)

    def _active(self) -> bool:
        """Whether any part counts at this step; before a late start and after a decay to nothing none does."""
        return any(part.schedule.factor(self.steps, self._error) > 0 for part in self.parts)

    def _new_draw(self, potential: PotentialLike, batch: Batch, predictions: Predictions | None) -> Draw:
        """This step's structures and displacements."""
        generator = self._generator()
        whole, start = batch, predictions
        if self.pool is not None:
            whole, start = join_unlabelled(batch, self.pool.draw(generator)), None
        structure = choose_structures(whole.graph, self.fraction, generator)
        part, part_predictions = choose(whole, start, structure)
        context = None
        if self.perturbation.needs_predictions:
            if part_predictions is None:
                graph = trim_edges(part.graph, cast("WeakPotential", potential).cutoff)
                part_predictions = potential(graph, forces=True, virial=False)
            context = Context(potential, part, part_predictions, self._ensemble)
        second = any(part.name in RESIDUALS and RESIDUALS[part.name].second for part in self.parts)
        d, *others = self.perturbation.sample_several(1 + second, part.graph, generator, context)
        p = others[0] if second else torch.zeros_like(d)
        return Draw(batch, whole, structure, part, d, p, generator, part_predictions)

    def _evaluate_together(
        self, potential: WeakPotential, draw: Draw, *, forces: bool, virial: bool
    ) -> tuple[Predictions | None, Predictions]:
        """One forward for the undisplaced structures and the copies; what is left is evaluated later.

        Copies of which only the energy is needed join in where that is cheaper than a forward of their own.
        """
        names = [part.name for part in self.parts if part.name in RESIDUALS]
        own, _ = needs_of(names, teacher=self.teacher is not None)
        points = [point for point in own.with_forces if point != ORIGIN]
        small = draw.whole.graph.edge_index.shape[1] < FEW_EDGES
        if potential.is_direct or small:
            points += [point for point in own.energy_only if point != ORIGIN]
        wanted = forces or bool(own.forces)
        origin = draw.whole if self.pool is not None and self._looks_at_origin() else draw.labelled
        graph, part = origin.graph, draw.batch.graph
        displacements = [displacement_at(point, draw.d, draw.p) for point in points]
        if part is graph:
            everything = displaced_copies(graph, [None, *displacements])
        else:
            everything = join([graph, displaced_copies(part, displacements)] if points else [graph])
        result = potential(trim_edges(everything, potential.cutoff), forces=wanted, virial=virial)
        structures = [graph.num_graphs] + [part.num_graphs] * len(points)
        atoms = [len(graph.positions)] + [len(part.positions)] * len(points)
        energies = result.energy.split(structures)
        of_atoms = result.forces.split(atoms) if wanted else [result.forces] * len(atoms)
        draw.energy.update(zip(points, energies[1:], strict=True))
        if wanted:
            draw.forces.update(zip(points, of_atoms[1:], strict=True))
        at_origin = Predictions(
            energies[0], of_atoms[0], result.virial[: structures[0]], result.atomic_energy[: atoms[0]]
        )
        chosen = None
        if origin is draw.whole or self.pool is None:
            chosen = choose(draw.whole, at_origin, draw.structure)[1]
        return chosen, at_origin if origin is draw.labelled else _head(at_origin, draw.labelled.graph)

    def _looks_at_origin(self) -> bool:
        return (
            any(
                ORIGIN in (*RESIDUALS[part.name].energies, *RESIDUALS[part.name].forces)
                for part in self.parts
                if part.name in RESIDUALS
            )
            or self.needs_virial
        )

    def _factor(self, part: Part) -> float:
        """What the mean of a part is multiplied by."""
        factor = part.config.weight * part.schedule.factor(self.steps, self._error)
        relative = part.config.unit == "lambda" and part.name not in _NO_RESIDUALS
        return factor * (self.force_weight if relative else 1.0)

    def _values(self, potential: WeakPotential, draw: Draw) -> tuple[list[Part], Tensor, Tensor]:
        """Each part's values on the structures that are looked at.

        Returns:
            the parts, their values (K, M), zero where a label is missing, and where none is (K, M) bool.
        """
        count = atom_count(draw.batch.graph)
        residuals = self._residuals(potential, draw)
        parts = [part for part in self.parts if part.name in residuals]
        others = [part for part in self.parts if part.name not in residuals]
        values, known = [], []
        if parts:
            unit = torch.stack([self._unit(part, count) for part in parts])
            error = torch.stack([residuals[part.name] for part in parts]) / unit
            missing = error.detach().isnan()
            # Filled before the square, whose own gradient would make NaN of a missing value.
            values.append(error.masked_fill(missing, 0.0).square())
            known.append(~missing)
        if others:
            other = torch.stack([self._other(part, potential, draw, count) for part in others])
            missing = other.detach().isnan()
            values.append(other.masked_fill(missing, 0.0))
            known.append(~missing)
        return [*parts, *others], torch.cat(values), torch.cat(known)

    def _residuals(self, potential: WeakPotential, draw: Draw) -> dict[str, Tensor]:
        """(M,) eV by name, NaN where a label is missing."""
        graph = draw.batch.graph
        names = [part.name for part in self.parts if part.name in RESIDUALS]
        residuals: dict[str, Tensor] = {}
        if names:
            residuals = potential.weak_residuals(
                names,
                graph,
                draw.d,
                draw.p,
                known=draw.known(),
                labels=draw.batch.labels,
                teacher=self.teacher,
                detach={part.name: part.config.detach for part in self.parts},
            )
        for part in self.parts:
            if not part.name.startswith("strain"):
                continue
            if self.strain is None:
                raise InputError("a strain term needs a distribution of strains", key="weak.strain")
            strain = self.strain.sample(graph, draw.generator)
            residuals[part.name] = getattr(potential, part.name)(graph, strain, base=draw.predictions)
        return residuals

    def _unit(self, part: Part, count: Tensor) -> Tensor:
        """(M,) what a residual is divided by before it is squared."""
        if part.config.unit == "total":
            return torch.ones_like(count)
        if part.config.unit == "per_atom":
            return count
        distribution = self.strain if part.name.startswith("strain") else self.perturbation
        return count * cast("RandomStrain | Perturbation", distribution).amplitude

    def _other(self, part: Part, potential: WeakPotential, draw: Draw, count: Tensor) -> Tensor:
        """Values (M,) of a part that is no residual, NaN where a label is missing."""
        graph, labels = draw.batch.graph, draw.batch.labels
        if part.name == "curl":
            v = random_unit(graph, draw.generator)
            return sum_by_structure(potential.curl(graph, v).square().sum(dim=1), graph)
        (moved,) = potential.displaced(graph, [draw.d])
        if part.name == "denoising":
            error = (moved.forces + self.stiffness * draw.d).square().sum(dim=1)
            return sum_by_structure(error, graph) / (3.0 * count)
        error = (moved.forces - torch.where(labels.forces.isnan(), moved.forces, labels.forces)).square()
        forces = sum_by_structure(error.sum(dim=1), graph) / (3.0 * count)
        return forces + _square((moved.energy - labels.energy) / count)

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


def _head(predictions: Predictions, graph: AtomGraph) -> Predictions:
    """The part of predictions that is on a graph at the beginning of a joined one."""
    atoms, structures = len(graph.positions), graph.num_graphs
    return Predictions(
        predictions.energy[:structures],
        predictions.forces[:atoms],
        predictions.virial[:structures],
        predictions.atomic_energy[:atoms],
    )


def _square(values: Tensor) -> Tensor:
    """Squares; a missing value stays NaN but sends no NaN back, as the square's own gradient would."""
    missing = torch.isnan(values)
    squares = torch.where(missing, torch.zeros_like(values), values).square()
    return torch.where(missing, torch.full_like(values, float("nan")), squares)
