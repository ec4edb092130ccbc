"""The sweeps as autograd sees them: from parameters to energies, forces and virials."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pimlip_zoo.compiled.kernels.edges import EdgeLists, edge_lists
from pimlip_zoo.compiled.kernels.geometry import edge_geometry
from pimlip_zoo.compiled.sweeps.run import Sweeps, Tape
from pimlip_zoo.graph import AtomGraph, Predictions, sum_by_structure


@dataclass(frozen=True)
class Levels:
    """What a potential makes of a model's energies: ``scale_i e_i + offset_i``; constants of the training."""

    scale: Tensor
    """(N,) float64."""
    offset: Tensor
    """(N,) float64, eV."""
    gradient: Tensor | None = None
    """(E, 3) float64, eV/Å, of what is added by the edge vectors; None: nothing that depends on them."""


def predict_structures(
    sweeps: Sweeps, graph: AtomGraph, levels: Levels, dtype: torch.dtype, *, forces: bool, virial: bool
) -> Predictions:
    """Energies, forces and virials, differentiable once by the model's parameters.

    Args:
        sweeps: of the model.
        graph: the structures, taken as constants.
        levels: from the model's energies to those of the potential.
        dtype: of the model.
        forces: whether forces are wanted; empty otherwise.
        virial: whether the virial is; likewise.
    """
    edges = edge_lists(graph.edge_index, len(graph.positions))
    # The virial needs the vectors in full precision, too.
    exact = edge_geometry(torch.float64).vectors(graph, edges) if virial else None
    vectors = edge_geometry(dtype).vectors(graph, edges) if exact is None else exact.to(dtype)
    asked = _Asked(sweeps, graph, edges, vectors, exact, levels, forces)
    if torch.is_grad_enabled() and any(p.requires_grad for p in sweeps.parameters()):
        return Predictions(*_Structures.apply(asked, *sweeps.parameters()))
    with torch.no_grad():
        return asked.evaluate()[1]


def virial_of_edges(graph: AtomGraph, vectors: Tensor, gradient: Tensor) -> Tensor:
    """``-sum r (x) dE/dr`` over the edges of each structure, symmetric: (M, 3, 3) eV."""
    products = vectors.unsqueeze(2) * gradient.unsqueeze(1)
    total = products.new_zeros((graph.num_graphs, 3, 3))
    total = total.index_add(0, graph.batch[graph.edge_index[0]], products)
    return -0.5 * (total + total.transpose(1, 2))


@dataclass(frozen=True)
class _Asked:
    """A prediction of structures and the adjoint of what it does with a model's energies and their gradient."""

    sweeps: Sweeps
    graph: AtomGraph
    edges: EdgeLists
    vectors: Tensor
    exact: Tensor | None
    """(E, 3) float64 where the virial is wanted."""
    levels: Levels
    forces: bool

    def evaluate(self) -> tuple[Tape, Predictions]:
        """Both first sweeps."""
        graph, levels, dtype = self.graph, self.levels, self.vectors.dtype
        tape = self.sweeps.forward(graph, self.vectors)
        atomic = torch.addcmul(levels.offset, levels.scale, self.sweeps.energies(tape).to(torch.float64))
        forces, virial = graph.positions.new_empty((0, 3)), graph.positions.new_empty((0, 3, 3))
        if self.forces or self.exact is not None:
            gradient = self.sweeps.adjoint(tape, levels.scale.to(dtype))
            if levels.gradient is not None:
                gradient = gradient.to(torch.float64) + levels.gradient
            if self.forces:
                forces = edge_geometry(gradient.dtype).forces(gradient, self.edges)
            if self.exact is not None:
                virial = virial_of_edges(graph, self.exact, gradient.to(torch.float64))
        return tape, Predictions(sum_by_structure(atomic, graph), forces, virial, atomic)

    def energy_cotangent(self, of_structures: Tensor | None, of_atoms: Tensor | None) -> Tensor | None:
        """(N,) derivative of a loss by the model's energies, from those by energies of structures and of atoms."""
        h = None if of_structures is None else of_structures.index_select(0, self.graph.batch)
        if of_atoms is not None:
            h = of_atoms if h is None else h + of_atoms
        return None if h is None else (h * self.levels.scale).to(self.vectors.dtype)

    def direction(self, of_forces: Tensor | None, of_virial: Tensor | None) -> Tensor | None:
        """(E, 3) derivative of a loss by the gradient, from those by forces and virials."""
        dtype, out = self.vectors.dtype, None
        if of_forces is not None and self.forces:
            out = edge_geometry(dtype).differences(of_forces, self.edges)
        if of_virial is not None and self.exact is not None:
            both = -0.5 * (of_virial + of_virial.transpose(1, 2))
            of_edge = both[self.graph.batch[self.graph.edge_index[0]]]
            part = torch.bmm(of_edge, self.exact.unsqueeze(2)).squeeze(2).to(dtype)
            out = part if out is None else out + part
        return out


class _Structures(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, asked: _Asked, *parameters: Tensor) -> Predictions:
        ctx.set_materialize_grads(False)
        ctx.asked, ctx.versions = asked, _versions(parameters)
        ctx.tape, found = asked.evaluate()
        ctx.mark_non_differentiable(*(t for t in found if not t.numel()))
        return found

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, energy: Tensor | None, forces: Tensor | None, virial: Tensor | None, atomic: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        asked, sweeps, tape = ctx.asked, ctx.asked.sweeps, ctx.tape
        if ctx.versions != _versions(sweeps.parameters()):
            raise RuntimeError("parameters were changed between a prediction and its derivative")
        h, direction = asked.energy_cotangent(energy, atomic), asked.direction(forces, virial)
        if h is None:
            h = torch.zeros_like(sweeps.energies(tape))
        along = None if direction is None or not direction.numel() else direction.contiguous()
        return (None, *sweeps.second(tape, sweeps.tangent(tape, along), h))


def _versions(parameters: Sequence[Tensor]) -> list[int]:
    # Writes in place, such as an optimiser's step; only tensors that autograd saves are watched by torch itself.
    return [p._version for p in parameters]  # noqa: SLF001
