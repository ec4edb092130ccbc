"""MACE with nonlinear interactions: the architecture of MACE-MH and MACE-OMOL (Batatia et al., arXiv:2510.25380)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from e3nn import o3
from pydantic import NonNegativeInt
from torch import Tensor, nn

from pimlip_zoo.compiled.kernels import sum_by_centre
from pimlip_zoo.errors import InputError
from pimlip_zoo.graph import AtomGraph
from pimlip_zoo.models.base import AtomicEnergyModel, Count
from pimlip_zoo.models.mace import ProductsConfig
from pimlip_zoo.nn.convolution import Convolution, convolution_spec
from pimlip_zoo.nn.electrons import ElectronTables
from pimlip_zoo.nn.gate import Gate
from pimlip_zoo.nn.linear import EquivariantLinear
from pimlip_zoo.nn.mlp import ScalarMLP
from pimlip_zoo.nn.radial_network import RadialNetwork
from pimlip_zoo.nn.readout import BiasedReadout
from pimlip_zoo.nn.symmetric_contraction import SymmetricContraction, symmetric_contraction_spec
from pimlip_zoo.registry import register_model

DENSITY_WIDTH = 64
"""Of the hidden layer of the network that makes an edge's share of the density."""


@dataclass(frozen=True, kw_only=True)
class MACENonlinearConfig(ProductsConfig):
    """Options of MACE with nonlinear interactions.

    An atom on its own does not have its reference energy: every layer passes the species on.
    ``avg_num_neighbors`` is what the divisor of sums over neighbours begins with; it is learned.
    """

    edge_channels: Count | None = None
    """C_e, of what is gathered from the neighbours; None: C. The convolution's cost is that of these."""
    edge_l_max: NonNegativeInt | None = None
    """Highest degree of what is gathered from the neighbours; None: hidden_l_max."""
    reduce_first: bool = False
    """Gather C_e channels in the first layer, too, where there are scalars alone; otherwise C."""
    readout_width: Count = 16
    """Width of both hidden layers of the last readout; the others are linear."""
    last_readout_only: bool = False
    """Read energies from the last layer alone."""
    embedding_readout: bool = False
    """Add an energy that depends on species, charge and multiplicity alone."""
    max_charge: NonNegativeInt = 20
    """With embed_charge: charges from minus to plus this are known."""
    max_multiplicity: Count = 20
    """With embed_charge: multiplicities up to this are known."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("radial_hidden", len(self.radial_hidden) > 0, "one or more widths")
        most = self.l_max * self.correlation
        allowed = f"0 to {most}, what l_max {self.l_max} and correlation {self.correlation} allow"
        self._require("hidden_l_max", 0 <= self.hidden_l_max <= most, allowed)
        fits = self.edge_l_max is None or self.edge_l_max <= self.hidden_l_max
        self._require("edge_l_max", fits, f"0 to hidden_l_max, {self.hidden_l_max}, or leave it out")
        reduces = not self.reduce_first or self.edge_channels is not None
        self._require("reduce_first", reduces, "edge_channels with it, or false")
        if self.force_head == "direct":
            raise InputError(
                "mace-nonlinear offers no direct force head", key="force_head", hint="use conservative"
            )


class NonlinearLayer(nn.Module):
    """Gathering with weights that see both species, a gate, products that see none, a residual.

    ``m = W (sum_j w_ij (U x)_j Y_ij) / (alpha + beta rho)`` with the density ``rho = sum_j tanh(d_ij²) f_c``;
    ``A = W' gate(m + V U x)``; ``x' = W'' B(A) + R x`` with the symmetric contraction B.

    Args:
        irreps_in: features that come in.
        irreps_edge: what is gathered of them.
        irreps_out: features that are passed on.
        edge_channels: C_e of this layer.
        config: the model's options.
        num_species: S.
    """

    def __init__(
        self,
        irreps_in: o3.Irreps,
        irreps_edge: o3.Irreps,
        irreps_out: o3.Irreps,
        edge_channels: int,
        config: MACENonlinearConfig,
        num_species: int,
    ) -> None:
        super().__init__()
        channels, basis = config.channels, config.num_bessel
        self.irreps_out, self.edge_channels = irreps_out, edge_channels
        harmonics = o3.Irreps.spherical_harmonics(config.l_max)
        self.gate = Gate(harmonics, gate_activation="sigmoid")
        before_gate = self.gate.irreps_in
        self.linear_in = EquivariantLinear(irreps_in, irreps_edge, channels, edge_channels)
        self.convolution = Convolution(convolution_spec(irreps_edge, harmonics, harmonics), edge_channels)
        num_weights = self.convolution.num_paths * edge_channels
        self.radial = RadialNetwork(basis, config.radial_hidden, num_weights, num_species)
        self.density = RadialNetwork(basis, (DENSITY_WIDTH,), 1, num_species)
        self.linear_message = EquivariantLinear(
            self.convolution.irreps_out, before_gate, edge_channels, channels
        )
        self.alpha = nn.Parameter(torch.tensor(float(config.avg_num_neighbors or 1.0)))
        self.beta = nn.Parameter(torch.tensor(0.0))
        self.linear_self = EquivariantLinear(irreps_edge, before_gate, edge_channels, channels)
        self.linear_basis = EquivariantLinear(harmonics, harmonics, channels, channels)
        spec = symmetric_contraction_spec(harmonics, irreps_out, config.correlation, config.coupling)
        self.contraction = SymmetricContraction(spec, 1, channels)
        self.linear_update = EquivariantLinear(irreps_out, irreps_out, channels, channels)
        self.skip = EquivariantLinear(irreps_in, irreps_out, channels, channels)

    def forward(
        self, x: Tensor, harmonics: Tensor, radial: Tensor, envelope: Tensor, graph: AtomGraph
    ) -> Tensor:
        """(N, K_in, C) -> (N, K_out, C)."""
        weights = self.radial(radial, graph) * envelope
        weights = weights.view(-1, self.convolution.num_paths, self.edge_channels)
        gathered = self.linear_in(x)
        message = self.linear_message(self.convolution(gathered, harmonics, weights, graph.edge_index))
        of_edge = torch.tanh(self.density(radial, graph).square()) * envelope
        density = sum_by_centre(of_edge, graph.edge_index[0], x.shape[0])
        message = message / (self.alpha + self.beta * density).unsqueeze(-1)
        basis = self.linear_basis(self.gate(message + self.linear_self(gathered)))
        products = self.contraction(basis, torch.zeros_like(graph.species))
        out: Tensor = self.linear_update(products) + self.skip(x)
        return out


@register_model(
    "mace-nonlinear",
    config=MACENonlinearConfig,
    presets={
        "small": {"channels": 32, "edge_channels": 16, "l_max": 2},
        "medium": {"channels": 64, "edge_channels": 32},
        "large": {"channels": 128, "edge_channels": 64, "hidden_l_max": 2},
    },
)
class MACENonlinear(AtomicEnergyModel):
    """MACE whose messages pass a gate and whose products do not depend on the species."""

    readout_modules = ("readouts",)
    can_embed_charge = True

    def __init__(self, config: MACENonlinearConfig, species: Sequence[str]) -> None:
        super().__init__(config, species)
        channels, count = config.channels, len(self.species)
        self.interaction_depth = config.num_interactions
        self.species_embedding = nn.Parameter(torch.randn(count, channels))
        self.embedding_scale = 1.0 / math.sqrt(count)
        self.electrons = (
            ElectronTables(channels, config.max_charge, config.max_multiplicity)
            if config.embed_charge
            else None
        )
        self.embedding_readout = (
            ScalarMLP((channels, 1), gain=1.0, normalized=True) if config.embedding_readout else None
        )
        self.edges = config.edges(self.species)
        hidden = o3.Irreps.spherical_harmonics(config.hidden_l_max)
        degree = config.hidden_l_max if config.edge_l_max is None else config.edge_l_max
        gathered = o3.Irreps.spherical_harmonics(degree)
        edge_channels = config.edge_channels or channels
        scalars = o3.Irreps("0e")
        layers = []
        for index in range(config.num_interactions):
            first, last = index == 0, index == config.num_interactions - 1
            layers.append(
                NonlinearLayer(
                    scalars if first else hidden,
                    scalars if first else gathered,
                    scalars if last else hidden,
                    channels if first and not config.reduce_first else edge_channels,
                    config,
                    count,
                )
            )
        self.layers = nn.ModuleList(layers)
        linear = 0 if config.last_readout_only else config.num_interactions - 1
        self.first_readout = config.num_interactions - 1 - linear
        readouts: list[nn.Module] = [
            ScalarMLP((channels, 1), gain=1.0, normalized=True) for _ in range(linear)
        ]
        readouts.append(BiasedReadout(channels, config.readout_width, config.readout_gate))
        self.readouts = nn.ModuleList(readouts)

    @classmethod
    def least_weights(cls, config: MACENonlinearConfig, species: Sequence[str]) -> int:  # type: ignore[override]
        """Embedding and, of every layer, what one on scalars has, see :class:`AtomicEnergyModel`."""
        channels, degrees = config.channels, config.l_max + 1
        edges = min(channels, config.edge_channels or channels)
        widths = (*config.radial_hidden, degrees * edges)
        radial = (config.num_bessel + 2 * len(species)) * widths[0]
        radial += sum(a * b for a, b in itertools.pairwise(widths))
        linear = (degrees + 2) * channels**2
        states = (
            (2 * config.max_charge + 1 + config.max_multiplicity) * channels if config.embed_charge else 0
        )
        return len(species) * channels + states + config.num_interactions * (radial + linear)

    def forward(self, graph: AtomGraph, vectors: Tensor) -> Tensor:
        """One energy per atom, see :class:`AtomicEnergyModel`."""
        radial, envelope, harmonics = self.edges.apart(vectors, graph)
        x = (self.species_embedding * self.embedding_scale)[graph.species]
        electrons = self.electrons
        if electrons is not None:
            x = x + electrons(graph, x)
        energies = torch.zeros_like(x[:, 0])
        embedding_readout = self.embedding_readout
        if embedding_readout is not None:
            energies = energies + embedding_readout(x).squeeze(-1)
        x = x.unsqueeze(1)
        features: list[Tensor] = []
        for layer in self.layers:
            x = layer(x, harmonics, radial, envelope, graph)
            features.append(x)
        index = self.first_readout
        for readout in self.readouts:
            energies = energies + readout(features[index][:, 0]).squeeze(-1)
            index += 1
        return energies

    def species_factor(self, name: str) -> float:
        """The embedding, see the base class."""
        return self.embedding_scale if name == "species_embedding" else 1.0
