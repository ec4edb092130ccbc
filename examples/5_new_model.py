"""An architecture of your own, in one class: a sum over pairs of atoms.

It trains, evaluates and exports like the ones that come with the package.

    python examples/5_new_model.py        (--steps 50 for a first look)
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import pimlip_zoo as pz
from pimlip_zoo.graph import AtomGraph


@dataclass(frozen=True, kw_only=True)
class PairConfig(pz.ModelConfig):
    """Options, beside cutoff and force head."""

    width: int = 32
    """Of the hidden layer."""


@pz.register_model("pairs", config=PairConfig)
class Pairs(pz.AtomicEnergyModel):
    """Half of each pair's energy to each of its atoms, by a perceptron of distance and species."""

    def __init__(self, config: PairConfig, species: Sequence[str]) -> None:
        super().__init__(config, species)
        self.interaction_depth = 1  # an atom further away than the cutoff does not matter
        self.cutoff = config.cutoff
        self.embedding = nn.Embedding(len(species), config.width)
        self.hidden = nn.Linear(8, config.width)
        self.readout = nn.Linear(config.width, 1, bias=False)

    def forward(self, graph: AtomGraph, vectors: Tensor) -> Tensor:
        """Edge vectors (E, 3) in, one energy per atom (N,) out; smooth, and zero at the cutoff."""
        centre, neighbour = graph.edge_index[0], graph.edge_index[1]
        length = vectors.norm(dim=1, keepdim=True).clamp(max=self.cutoff)
        order = torch.arange(1, 9, dtype=length.dtype, device=length.device)
        waves = torch.sin(order * torch.pi * length / self.cutoff) / length
        kinds = self.embedding(graph.species[centre]) * self.embedding(graph.species[neighbour])
        envelope = (1.0 - (length / self.cutoff) ** 2) ** 3
        pairs = envelope * self.readout(torch.nn.functional.silu(self.hidden(waves)) * kinds)
        energies = torch.zeros(len(graph.species), dtype=pairs.dtype, device=pairs.device)
        return energies.index_add(0, centre, pairs.squeeze(1))


parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=2000)
parser.add_argument("--out", default="runs/example-5", help="a folder without a run")
options = parser.parse_args()
steps, out = options.steps, options.out
pz.train(
    {"model.name": "pairs", "data.train": "builtin:ethanol-gfn2@:200", "trainer.max_steps": steps},
    out=out,
)
print("the contract that every architecture keeps: docs/guide/new-architecture.md")
