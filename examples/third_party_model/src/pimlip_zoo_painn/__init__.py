"""PaiNN: polarizable atom interaction network (Schütt, Unke, Gastegger, ICML 2021), for pimlip-zoo."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pimlip_zoo.errors import InputError
from pimlip_zoo.graph import AtomGraph
from pimlip_zoo.models.base import AtomicEnergyModel, ModelConfig
from pimlip_zoo.registry import register_model

__all__ = ["PaiNN", "PaiNNConfig"]


@dataclass(frozen=True, kw_only=True)
class PaiNNConfig(ModelConfig):
    """Options of PaiNN; cutoff, avg_num_neighbors and force_head come from ModelConfig."""

    channels: int = 64
    """F, scalar and vector features of an atom."""
    num_layers: int = 3
    """Rounds of message and update."""
    num_basis: int = 20
    """B, radial basis functions."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("channels", "num_layers", "num_basis"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}", key=name, hint="give an integer >= 1")


def thirds(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(N, 3 F) -> three of (N, F); TorchScript's gradient of ``chunk`` is wrong if a part goes unused."""
    width = x.shape[1] // 3
    return x[:, :width], x[:, width : 2 * width], x[:, 2 * width :]


class Message(nn.Module):
    """What an atom hears of its neighbours (eqs. 7 and 8): filters of the distance, directions."""

    def __init__(self, config: PaiNNConfig) -> None:
        super().__init__()
        width = config.channels
        self.context = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 3 * width))
        # No bias: an edge at the cutoff says nothing, and says it smoothly.
        self.filters = nn.Linear(config.num_basis, 3 * width, bias=False)
        self.scale = (config.avg_num_neighbors or 1.0) ** -0.5

    def forward(self, s: Tensor, v: Tensor, edges: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Scalars (N, F), vectors (N, 3, F) and (edge_index, radial, directions) -> changes of both."""
        edge_index, radial, directions = edges
        centre, neighbour = edge_index[0], edge_index[1]
        x = self.context(s)[neighbour] * self.filters(radial) * self.scale
        scalar, along, carried = thirds(x)
        vector = directions.unsqueeze(2) * along.unsqueeze(1) + v[neighbour] * carried.unsqueeze(1)
        return torch.zeros_like(s).index_add(0, centre, scalar), torch.zeros_like(v).index_add(
            0, centre, vector
        )


class Update(nn.Module):
    """What an atom makes of it (eqs. 9 and 10): scalars and vectors of the same atom mix."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Linear(width, width, bias=False) for _ in range(2))
        self.gates = nn.Sequential(nn.Linear(2 * width, width), nn.SiLU(), nn.Linear(width, 3 * width))

    def forward(self, s: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Scalars (N, F), vectors (N, 3, F) -> changes of both."""
        first, second = self.first(v), self.second(v)
        length = torch.sqrt(second.square().sum(1) + 1e-8)
        scalar, product, vector = thirds(self.gates(torch.cat([s, length], dim=1)))
        return scalar + product * (first * second).sum(1), vector.unsqueeze(1) * first


@register_model(
    "painn", config=PaiNNConfig, presets={"small": {"channels": 32, "num_layers": 2}, "medium": {}}
)
class PaiNN(AtomicEnergyModel):
    """PaiNN-like: message passing with scalars and vectors (an architecture of another package)."""

    def __init__(self, config: PaiNNConfig, species: Sequence[str]) -> None:
        super().__init__(config, species)
        self.interaction_depth = config.num_layers
        width = config.channels
        self.num_basis, self.num_species = config.num_basis, len(self.species)
        self.embedding = nn.Embedding(self.num_species, width)
        self.messages = nn.ModuleList(Message(config) for _ in range(config.num_layers))
        self.updates = nn.ModuleList(Update(width) for _ in range(config.num_layers))
        self.readout = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1))
        direct = config.force_head == "direct"
        self.force_readout = nn.Linear(width, 1, bias=False) if direct else None

    def forward(self, graph: AtomGraph, vectors: Tensor) -> Tensor:
        """One energy per atom (N,)."""
        s, _ = self.features(graph.species, graph.edge_index, vectors)
        return self.readout(s).squeeze(-1) - self.energy_apart(graph.species, vectors)

    @torch.jit.export
    def energies_and_forces(self, graph: AtomGraph, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Energies (N,) and forces (N, 3) from the vector features, for force_head="direct"."""
        head = self.force_readout
        if head is None:
            raise ValueError("this model was built without a direct force head")
        s, v = self.features(graph.species, graph.edge_index, vectors)
        energy = self.readout(s).squeeze(-1) - self.energy_apart(graph.species, vectors)
        return energy, head(v).squeeze(-1)

    def features(self, species: Tensor, edge_index: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Scalars (N, F) and vectors (N, 3, F) after the last layer."""
        length = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
        x = length / self.cutoff
        frequencies = math.pi * torch.arange(1, self.num_basis + 1, dtype=x.dtype, device=x.device)
        envelope = 0.5 * (torch.cos(math.pi * x) + 1.0) * (x < 1.0).to(x.dtype)
        edges = (edge_index, torch.sin(frequencies * x) / length * envelope, vectors / length)
        s = self.embedding(species)
        v = torch.zeros((s.shape[0], 3, s.shape[1]), dtype=s.dtype, device=s.device)
        for message, update in zip(self.messages, self.updates):  # noqa: B905  (TorchScript)
            ds, dv = message(s, v, edges)
            s, v = s + ds, v + dv
            ds, dv = update(s, v)
            s, v = s + ds, v + dv
        return s, v

    def energy_apart(self, species: Tensor, vectors: Tensor) -> Tensor:
        """What the network says of atoms without neighbours: taken off, so that those have energy zero."""
        kinds = torch.arange(self.num_species, device=species.device)
        s, _ = self.features(
            kinds, torch.zeros((2, 0), dtype=species.dtype, device=species.device), vectors[:0]
        )
        return self.readout(s).squeeze(-1)[species]
