"""Displacements that look for trouble: along force errors, along disagreement, along stiff and soft modes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from pimlip_zoo.consistency.displacements import (
    Context,
    Displacement,
    DisplacementOptions,
    atom_count,
    displacement,
    limit,
    random_direction,
    remove_mean,
    with_rms,
)
from pimlip_zoo.errors import InputError
from pimlip_zoo.graph import AtomGraph, sum_by_structure
from pimlip_zoo.losses.base import PotentialLike
from pimlip_zoo.training.checkpoint import load_potential

__all__ = ["AlongForceError", "AlongVariance", "SoftModes", "StiffModes", "remove_rotation"]


@displacement("force_error")
class AlongForceError(Displacement):
    """Along ``F_model - F_label``, of root mean square ``amplitude``, forwards or backwards at random.

    A structure without force labels is displaced in a random direction.
    """

    needs_force_labels = True
    needs_predictions = True

    def __init__(self, amplitude: float) -> None:
        super().__init__(amplitude, 3.0 * amplitude)

    def draw(self, graph: AtomGraph, generator: torch.Generator, context: Context | None) -> Tensor:
        """See :class:`Displacement`."""
        if context is None:
            raise InputError("displacements along the force error need labels", key="perturbation")
        error = context.predictions.forces.detach() - context.batch.labels.forces
        return signed(error, graph, generator, self.amplitude)


class VarianceOptions(DisplacementOptions):
    """Of displacements along the variance."""

    ensemble: tuple[str, ...] = Field(default=(), validate_default=False)
    """Runs whose disagreement is followed; two at least."""


@displacement("variance", options=VarianceOptions)
class AlongVariance(Displacement):
    """Up the gradient of an ensemble's energy variance, of root mean square ``amplitude``.

    ``∇ Var_k E_k = -2/(K-1) Σ_k (E_k - <E>) (F_k - <F>)`` over the K members (adversarial attack,
    Schwalbe-Koda et al., Nat. Commun. 12, 5104, 2021).
    """

    def __init__(self, amplitude: float, ensemble: Sequence[str | PotentialLike] = ()) -> None:
        super().__init__(amplitude, 3.0 * amplitude)
        if len(ensemble) < 2:
            raise InputError(
                f"displacements along the variance need at least 2 runs, {len(ensemble)} given",
                key="ensemble",
            )
        self._members = tuple(load_potential(one) if isinstance(one, str) else one for one in ensemble)

    def draw(self, graph: AtomGraph, generator: torch.Generator, context: Context | None) -> Tensor:  # noqa: ARG002
        """See :class:`Displacement`."""
        members = self._members
        results = [member(graph, forces=True, virial=False) for member in members]
        energy = torch.stack([result.energy for result in results])
        forces = torch.stack([result.forces for result in results])
        deviation = (energy - energy.mean(dim=0))[:, graph.batch].unsqueeze(2)
        gradient = -2.0 / (len(members) - 1) * (deviation * (forces - forces.mean(dim=0))).sum(dim=0)
        return with_rms(or_random(gradient, graph, generator), graph, self.amplitude)


class ModeOptions(DisplacementOptions):
    """Of displacements along modes."""

    iterations: PositiveInt = 3
    """Products with the Hessian, two force evaluations each."""


class AlongModes(Displacement):
    """Random directions filtered by the potential's own Hessian.

    ``H v`` is a central difference of forces. Translations are removed, rotations of molecules too.

    Args:
        amplitude: Å, root mean square.
        iterations: products with the Hessian, two force evaluations each.
    """

    needs_predictions = True

    def __init__(self, amplitude: float, iterations: int = 3) -> None:
        super().__init__(amplitude, 3.0 * amplitude)
        self.iterations, self.step = iterations, min(0.01, amplitude)

    def draw(self, graph: AtomGraph, generator: torch.Generator, context: Context | None) -> Tensor:
        """See :class:`Displacement`."""
        if context is None:
            raise InputError("displacements along modes need a potential", key="perturbation")
        v = self._project(random_direction(graph, generator), graph)
        return self.amplitude * self._filtered(v, context.potential, graph)

    def _filtered(self, v: Tensor, potential: PotentialLike, graph: AtomGraph) -> Tensor:
        raise NotImplementedError  # of the two modes, below

    def _hessian(self, potential: PotentialLike, graph: AtomGraph, v: Tensor) -> Tensor:
        # No pair may change by more than the list was widened for.
        d = limit(self.step * v, graph, self.max_displacement)
        plus = potential(graph._replace(positions=graph.positions + d), forces=True, virial=False)
        minus = potential(graph._replace(positions=graph.positions - d), forces=True, virial=False)
        return (minus.forces - plus.forces) / (2.0 * self.step)

    @staticmethod
    def _project(v: Tensor, graph: AtomGraph) -> Tensor:
        return with_rms(remove_rotation(remove_mean(v, graph), graph), graph, 1.0)


@displacement("stiff", options=ModeOptions)
class StiffModes(AlongModes):
    """Random directions filtered by the potential's own Hessian towards stiff modes: ``v <- H v``."""

    def _filtered(self, v: Tensor, potential: PotentialLike, graph: AtomGraph) -> Tensor:
        for _ in range(self.iterations):
            v = self._project(self._hessian(potential, graph, v), graph)
        return v


@displacement("soft", options=ModeOptions)
class SoftModes(AlongModes):
    """Random directions filtered by the potential's own Hessian towards soft modes: ``v <- v - H v / λ``.

    λ is an estimate of the largest eigenvalue.
    """

    def _filtered(self, v: Tensor, potential: PotentialLike, graph: AtomGraph) -> Tensor:
        top, largest = v, torch.ones_like(v[:, :1])
        for _ in range(3):
            product = self._hessian(potential, graph, top)
            norm = (sum_by_structure(product.square().sum(dim=1), graph) / atom_count(graph)).sqrt()
            largest = norm.clamp_min(1e-12)[graph.batch].unsqueeze(1)
            top = self._project(product, graph)
        for _ in range(self.iterations):
            v = self._project(v - self._hessian(potential, graph, v) / (1.2 * largest), graph)
        return v


def remove_rotation(d: Tensor, graph: AtomGraph) -> Tensor:
    """Take the rigid rotation off the displacements of structures that have no cell: (N, 3) -> (N, 3).

    The rotation ``w x r`` with ``w = (Σ r² - r r^T)^+ Σ r x d``, distances from the structure's centre.
    """
    r = remove_mean(graph.positions, graph)
    torque = sum_by_structure(torch.linalg.cross(r, d), graph)
    eye = torch.eye(3, dtype=r.dtype, device=r.device)
    inertia = sum_by_structure(
        r.square().sum(dim=1)[:, None, None] * eye - r.unsqueeze(2) * r.unsqueeze(1), graph
    )
    w = (torch.linalg.pinv(inertia, hermitian=True, rtol=1e-8) @ torque.unsqueeze(2)).squeeze(2)
    molecule = (graph.cell.abs().amax(dim=(1, 2)) == 0).to(r.dtype).unsqueeze(1)
    rotation: Tensor = torch.linalg.cross((w * molecule)[graph.batch], r)
    return d - rotation


def or_random(direction: Tensor, graph: AtomGraph, generator: torch.Generator) -> Tensor:
    """The direction where a structure has one, a random one where it is missing (NaN) or zero."""
    known = torch.nan_to_num(direction)
    incomplete = sum_by_structure(torch.isnan(direction).to(known.dtype).sum(dim=1), graph) > 0
    size = sum_by_structure(remove_mean(known, graph).square().sum(dim=1), graph)
    missing = (incomplete | (size <= 1e-24))[graph.batch].unsqueeze(1)
    return torch.where(missing, random_direction(graph, generator), known)


def signed(direction: Tensor, graph: AtomGraph, generator: torch.Generator, rms: float) -> Tensor:
    """The direction with a random sign for each structure, of that root mean square."""
    u = torch.rand(graph.num_graphs, generator=generator, device=generator.device, dtype=torch.float64)
    sign = torch.where(u < 0.5, -1.0, 1.0).to(direction.device, direction.dtype)
    d = with_rms(or_random(direction, graph, generator), graph, rms)
    return d * sign[graph.batch].unsqueeze(1)
