"""NequIP: equivariant message passing (Batzner et al., Nat. Commun. 13, 2453, 2022)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from e3nn import o3
from torch import Tensor, nn

from pimlip_zoo.errors import InputError
from pimlip_zoo.graph import AtomGraph
from pimlip_zoo.models.base import AtomicEnergyModel, ModelConfig
from pimlip_zoo.nn.convolution import Convolution, convolution_spec
from pimlip_zoo.nn.edges import EdgeEmbedding
from pimlip_zoo.nn.electrons import ElectronEmbedding
from pimlip_zoo.nn.gate import Gate
from pimlip_zoo.nn.linear import EquivariantLinear, SpeciesLinear
from pimlip_zoo.nn.mlp import ScalarMLP
from pimlip_zoo.nn.readout import DirectForces
from pimlip_zoo.registry import register_model

__all__ = ["NequIP", "NequIPConfig"]


@dataclass(frozen=True, kw_only=True)
class NequIPConfig(ModelConfig):
    """Options of NequIP; the defaults are those of the paper where it has them."""

    num_layers: int = 3
    """T, message-passing layers."""
    l_max: int = 2
    """Highest degree of features and harmonics."""
    parity: bool = False
    """Features of both parities, or only those that the harmonics have."""
    channels: int = 32
    """C, for every irrep."""
    radial_hidden: tuple[int, ...] = (64,)
    """Widths of the hidden layers of the radial MLP."""
    num_bessel: int = 8
    """B, radial basis functions."""
    bessel_trainable: bool = False
    """Learn the frequencies of the basis."""
    cutoff_order: float = 6.0
    """p of the polynomial cutoff."""
    species_cutoffs: tuple[tuple[str, str, float], ...] = ()
    """(centre, neighbour, Å): shorter cutoffs for pairs of species, ``*`` for any; later ones win."""
    self_connection: bool = True
    """Species-dependent linear self-interaction beside the convolution, from the second layer on."""
    resnet: bool = False
    """Add a layer's input to its output where their irreps agree."""
    readout_hidden: tuple[int, ...] = ()
    """Widths of hidden layers of the readout; none: linear."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("num_layers", 1), ("l_max", 0), ("channels", 1), ("num_bessel", 1)):
            if getattr(self, name) < least:
                raise InputError(
                    f"{name} is {getattr(self, name)}", key=name, mend=f"give an integer >= {least}"
                )
        if self.force_head == "direct" and self.l_max < 1:
            raise InputError(
                "a direct force head needs vectors, and l_max 0 has none", key="l_max", mend="give l_max >= 1"
            )


class NequIPLayer(nn.Module):
    """Convolution with linear maps around it, self-connection, gate (paper, fig. 1c).

    Args:
        irreps_in: features that come in.
        irreps_out: features that are wanted; those that cannot be made are left out.
        config: the model's options.
        self_connection: add the species-dependent linear map of the input.
    """

    def __init__(
        self, irreps_in: o3.Irreps, irreps_out: o3.Irreps, config: NequIPConfig, *, self_connection: bool
    ) -> None:
        super().__init__()
        channels = config.channels
        harmonics = o3.Irreps.spherical_harmonics(config.l_max)
        reachable = {ir for _, a in irreps_in for _, b in harmonics for ir in a * b}
        self.irreps_in = irreps_in
        self.irreps_out = o3.Irreps([(1, ir) for _, ir in irreps_out if ir in reachable])
        gate = Gate(self.irreps_out, "0e" if o3.Irrep("0e") in reachable else "0o")
        self.gate = gate
        scale = 1.0 / math.sqrt(config.avg_num_neighbors or 1.0)
        self.linear_in = EquivariantLinear(irreps_in, irreps_in, channels, channels, factor=scale)
        self.convolution = Convolution(convolution_spec(irreps_in, harmonics, gate.irreps_in), channels)
        self.radial = ScalarMLP(
            (config.num_bessel, *config.radial_hidden, self.convolution.num_paths * channels)
        )
        self.linear_out = EquivariantLinear(self.convolution.irreps_out, gate.irreps_in, channels, channels)
        self.self_connection = (
            SpeciesLinear(irreps_in, gate.irreps_in, channels, channels, channels)
            if self_connection
            else None
        )
        self.residual = config.resnet and self_connection and self.irreps_out == irreps_in
        self.channels = channels

    def forward(
        self, x: Tensor, harmonics: Tensor, radial: Tensor, graph: AtomGraph, species_embedding: Tensor
    ) -> Tensor:
        """(N, K_in, C) -> (N, K_out, C)."""
        weights = self.radial(radial).view(-1, self.convolution.num_paths, self.channels)
        y = self.convolution(self.linear_in(x), harmonics, weights, graph.edge_index)
        y = self.linear_out(y)
        if self.self_connection is not None:
            y = y + self.self_connection(x, species_embedding, graph.species)
        y = self.gate(y)
        return x + y if self.residual else y


@register_model(
    "nequip",
    config=NequIPConfig,
    presets={
        "small": {"num_layers": 2, "channels": 32, "radial_hidden": (64,)},
        "medium": {"num_layers": 3, "channels": 64, "radial_hidden": (128,)},
        "large": {"num_layers": 4, "channels": 64, "l_max": 3, "parity": True, "radial_hidden": (128,)},
    },
)
class NequIP(AtomicEnergyModel):
    """NequIP-like: T layers of equivariant message passing, linear readout of the last layer's scalars."""

    readout_modules = ("readout", "force_readout")
    can_embed_charge = True

    def __init__(self, config: NequIPConfig, species: Sequence[str]) -> None:
        super().__init__(config, species)
        channels, direct = config.channels, config.force_head == "direct"
        self.interaction_depth = config.num_layers
        self.species_embedding = nn.Parameter(torch.randn(len(self.species), channels))
        self.electrons = ElectronEmbedding(channels) if config.embed_charge else None
        self.edges = EdgeEmbedding(
            self.species,
            cutoff=config.cutoff,
            l_max=config.l_max,
            num_basis=config.num_bessel,
            trainable=config.bessel_trainable,
            prefactor=2.0 / config.cutoff**2,
            cutoff_order=config.cutoff_order,
            species_cutoffs=config.species_cutoffs,
        )
        hidden = _hidden_irreps(config.l_max, parity=config.parity)
        last = o3.Irreps("0e + 1o") if direct else o3.Irreps("0e")
        layers, irreps = [], o3.Irreps("0e")
        for index in range(config.num_layers):
            layer = NequIPLayer(
                irreps,
                hidden if index < config.num_layers - 1 else last,
                config,
                # An isolated atom keeps its reference energy: nothing bypasses the first convolution.
                self_connection=config.self_connection and index > 0,
            )
            irreps = layer.irreps_out
            layers.append(layer)
        self.layers = nn.ModuleList(layers)
        self.readout = ScalarMLP((channels, *config.readout_hidden, 1))
        self.force_readout = DirectForces(irreps, channels) if direct else None

    def forward(self, graph: AtomGraph, vectors: Tensor) -> Tensor:
        """One energy per atom, see :class:`AtomicEnergyModel`."""
        return self.readout(self.features(graph, vectors)[:, 0]).squeeze(-1)

    @torch.jit.export
    def energies_and_forces(self, graph: AtomGraph, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Energies (N,) and direct forces (N, 3), see :class:`AtomicEnergyModel`."""
        features = self.features(graph, vectors)
        head = self.force_readout
        if head is None:
            raise ValueError("this model was built without a direct force head")
        return self.readout(features[:, 0]).squeeze(-1), head(features)

    def features(self, graph: AtomGraph, vectors: Tensor) -> Tensor:
        """Node features after the last layer: (N, K, C), scalars first."""
        radial, harmonics = self.edges(vectors, graph)
        x = self.species_embedding[graph.species]
        electrons = self.electrons
        if electrons is not None:
            x = x + electrons(graph, x)
        x = x.unsqueeze(1)
        for layer in self.layers:
            x = layer(x, harmonics, radial, graph, self.species_embedding)
        return x


def _hidden_irreps(l_max: int, *, parity: bool) -> o3.Irreps:
    """Every degree up to l_max, of both parities or of that of the harmonics only."""
    if parity:
        return o3.Irreps([(1, (degree, p)) for degree in range(l_max + 1) for p in (1, -1)])
    return o3.Irreps.spherical_harmonics(l_max)
