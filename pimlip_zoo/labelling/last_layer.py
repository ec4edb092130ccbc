"""The last layer of a potential: energies are linear in its weights, and so are forces."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from pimlip_zoo.errors import InputError
from pimlip_zoo.graph import AtomGraph, edge_vectors
from pimlip_zoo.models.potential import Potential
from pimlip_zoo.models.readouts import last_weights, readout_perceptrons, set_last_weights
from pimlip_zoo.nn.mlp import ScalarMLP

_TOLERANCE = 1e-3


class LastLayer:
    """Features that the last weights of the readouts multiply, and what energies and forces these make.

    ``E_i = sum_d features[i, d] w_d + (what does not depend on the weights)``; the D weights of all readouts together.

    Args:
        potential: with conservative forces; copied, not changed.

    Raises:
        InputError: for a potential with direct forces, or whose readouts are not known.
    """

    def __init__(self, potential: Potential) -> None:
        if potential.is_direct:
            raise InputError(
                "forces from a head of their own are not linear in what the energies are made of",
                key="force_head",
                hint="take a committee of runs for its uncertainty",
            )
        self.potential = copy.deepcopy(potential).eval().requires_grad_(False)
        self._readouts = readout_perceptrons(self.potential.model)
        self.weights = last_weights(self.potential.model)
        """(D,) as trained."""

    def __len__(self) -> int:
        return len(self.weights)

    def features(self, graph: AtomGraph) -> Tensor:
        """(N, D) eV, float64: the derivative of each atom's energy by the weights; one forward pass.

        Raises:
            InputError: when the energies are not linear in these weights.
        """
        model, count = self.potential.model, graph.species.shape[0]
        vectors = edge_vectors(graph).to(model.dtype)
        with torch.no_grad(), _inputs(self._readouts) as inputs:
            energy = model(graph, vectors).double()
        centre, edges = graph.edge_index[0], graph.edge_index.shape[1]
        parts = []
        for readout, given in zip(self._readouts, inputs, strict=True):
            (x,) = given
            rows = _last_inputs(readout, x).double()
            of_edges = rows.shape[0] == edges and rows.shape[0] != count
            parts.append(
                rows.new_zeros((count, rows.shape[1])).index_add(0, centre, rows) if of_edges else rows
            )
        features = torch.cat(parts, dim=1)
        made = features @ self.weights
        square = float(made @ made)
        factor = float(made @ energy) / square if square > 0 else 1.0
        scale = float(energy.abs().max()) if count else 0.0
        if count and float((factor * made - energy).abs().max()) > _TOLERANCE * max(scale, 1e-6):
            raise InputError(f"the energies of {type(model).__name__} are not linear in its last layer")
        return factor * features * self.potential.scale[graph.species].unsqueeze(1)

    def forces(self, graph: AtomGraph, directions: Tensor) -> Tensor:
        """(K, N, 3) eV/Å, float64: how forces change when the weights move by each of the directions (K, D)."""
        base = (
            self._forces(graph, torch.zeros_like(self.weights))
            if self.potential.repulsion is not None
            else 0.0
        )
        changes = [self._forces(graph, direction) - base for direction in directions]
        return torch.stack(changes)

    def _forces(self, graph: AtomGraph, weights: Tensor) -> Tensor:
        model = self.potential.model
        set_last_weights(model, weights)
        with torch.no_grad():
            forces: Tensor = self.potential(graph, forces=True, virial=False).forces
        set_last_weights(model, self.weights)
        return forces


def _last_inputs(readout: ScalarMLP, x: Tensor) -> Tensor:
    """What the last weight of a readout multiplies, with its scale."""
    for weight, scale in zip(list(readout.weights)[:-1], readout.scales[:-1], strict=True):
        x = readout.act(torch.mm(x, weight * scale))
    return x * readout.scales[-1]


@contextmanager
def _inputs(modules: list[ScalarMLP]) -> Iterator[list[list[Tensor]]]:
    """Collect what each module is called with."""
    collected: list[list[Tensor]] = [[] for _ in modules]

    def keeper(place: int):  # type: ignore[no-untyped-def]  # noqa: ANN202
        def keep(module: nn.Module, given: tuple[Tensor, ...]) -> None:  # noqa: ARG001
            collected[place].append(given[0])

        return keep

    handles = [module.register_forward_pre_hook(keeper(place)) for place, module in enumerate(modules)]
    try:
        yield collected
    finally:
        for handle in handles:
            handle.remove()
