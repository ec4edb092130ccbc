"""MACE: message passing with many-body messages (Batatia et al., NeurIPS 2022)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from e3nn import o3
from pydantic import NonNegativeInt
from torch import Tensor, nn

from pimlip_zoo.compiled.kernels import sum_by_centre
from pimlip_zoo.graph import AtomGraph
from pimlip_zoo.models.base import AtomicEnergyModel, Count, ModelConfig, Widths
from pimlip_zoo.nn.agnesi import AgnesiTransform
from pimlip_zoo.nn.convolution import Convolution, convolution_spec
from pimlip_zoo.nn.edges import EdgeEmbedding
from pimlip_zoo.nn.electrons import ElectronEmbedding
from pimlip_zoo.nn.linear import EquivariantLinear, SpeciesLinear
from pimlip_zoo.nn.mlp import ACTIVATIONS, ScalarMLP, num_weights
from pimlip_zoo.nn.readout import DirectForces
from pimlip_zoo.nn.symmetric_contraction import (
    CouplingBasis,
    SymmetricContraction,
    symmetric_contraction_spec,
)
from pimlip_zoo.registry import register_model

DistanceTransform = Literal["none", "agnesi"]
Normalization = Literal["neighbors", "density"]


@dataclass(frozen=True, kw_only=True)
class ProductsConfig(ModelConfig):
    """The options that architectures of products over neighbours share."""

    num_interactions: Count = 2
    """T, message-passing layers."""
    l_max: NonNegativeInt = 3
    """Highest degree of the harmonics and of what is summed over the neighbours."""
    hidden_l_max: int = 1
    """Highest degree of the features that are passed on."""
    channels: Count = 32
    """C, for every irrep."""
    correlation: Literal[1, 2, 3, 4] = 3
    """Number of neighbours that a message couples at once, 1 to 4: body order minus one."""
    radial_hidden: Widths = (64, 64, 64)
    """Widths of the hidden layers of the radial network."""
    num_bessel: Count = 8
    """B, radial basis functions."""
    bessel_trainable: bool = False
    """Learn the frequencies of the basis."""
    cutoff_order: float = 5.0
    """p of the polynomial cutoff."""
    distance_transform: DistanceTransform = "none"
    """agnesi: the basis sees distances relative to the covalent radii."""
    species_cutoffs: tuple[tuple[str, str, float], ...] = ()
    """(centre, neighbour, Å): shorter cutoffs for pairs of species, ``*`` for any; later ones win."""
    coupling: CouplingBasis = "paths"
    """A weight for every coupling path as published, or only as many as are linearly independent."""
    readout_gate: str = "silu"
    """Activation of the last readout."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("readout_gate", self.readout_gate in ACTIVATIONS, ", ".join(ACTIVATIONS))

    def edges(self, species: Sequence[str]) -> EdgeEmbedding:
        """What a model sees of its edges."""
        return EdgeEmbedding(
            species,
            cutoff=self.cutoff,
            l_max=self.l_max,
            num_basis=self.num_bessel,
            trainable=self.bessel_trainable,
            prefactor=math.sqrt(2.0 / self.cutoff) / self.cutoff,
            cutoff_order=self.cutoff_order,
            species_cutoffs=self.species_cutoffs,
            transform=AgnesiTransform(species) if self.distance_transform == "agnesi" else None,
        )


@dataclass(frozen=True, kw_only=True)
class MACEConfig(ProductsConfig):
    """Options of MACE; the defaults are those of the paper where it has them."""

    normalization: Normalization = "neighbors"
    """What sums over neighbours are divided by: their mean number, or one plus a learned density."""
    residual_first: bool = False
    """Pass the species on beside the first layer, too; an isolated atom then differs from its reference energy."""
    readout_hidden: Widths = (16,)
    """Widths of hidden layers of the last readout; none: linear, as the other layers' readouts are."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_vectors(self.l_max)
        least, most = int(self.force_head == "direct"), self.l_max * self.correlation
        allowed = f"{least} to {most}, what l_max {self.l_max}, correlation {self.correlation} and the force head allow"
        self._require("hidden_l_max", least <= self.hidden_l_max <= most, allowed)


class MACELayer(nn.Module):
    """One-particle basis, symmetric contraction, update (paper, eq. 8 to 12).

    Args:
        irreps_in: features that come in.
        irreps_out: features that are passed on.
        config: the model's options.
        num_species: S.
        residual: add a species-dependent map of the input to the output; without it, that map acts on the
            one-particle basis.
    """

    def __init__(
        self,
        irreps_in: o3.Irreps,
        irreps_out: o3.Irreps,
        config: MACEConfig,
        num_species: int,
        *,
        residual: bool,
    ) -> None:
        super().__init__()
        channels = config.channels
        self.irreps_in, self.irreps_out, self.channels = irreps_in, irreps_out, channels
        harmonics = o3.Irreps.spherical_harmonics(config.l_max)
        self.linear_in = EquivariantLinear(irreps_in, irreps_in, channels, channels)
        self.convolution = Convolution(convolution_spec(irreps_in, harmonics, harmonics), channels)
        widths = (config.num_bessel, *config.radial_hidden, self.convolution.num_paths * channels)
        self.radial = ScalarMLP(widths, gain=1.0, normalized=True)
        by_density = config.normalization == "density"
        scale = 1.0 if by_density else 1.0 / (config.avg_num_neighbors or 1.0)
        self.linear_out = EquivariantLinear(
            self.convolution.irreps_out, harmonics, channels, channels, factor=scale
        )
        self.density = ScalarMLP((config.num_bessel, 1)) if by_density else None
        self.residual = residual
        skip_in, skip_out = (irreps_in, irreps_out) if residual else (harmonics, harmonics)
        self.skip = SpeciesLinear(skip_in, skip_out, channels, channels, num_species)
        self._one_hot = nn.Buffer(torch.eye(num_species), persistent=False)
        spec = symmetric_contraction_spec(harmonics, irreps_out, config.correlation, config.coupling)
        self.contraction = SymmetricContraction(spec, num_species, channels)
        self.linear_update = EquivariantLinear(irreps_out, irreps_out, channels, channels)

    def forward(self, x: Tensor, harmonics: Tensor, radial: Tensor, graph: AtomGraph) -> Tensor:
        """(N, K_in, C) -> (N, K_out, C)."""
        weights = self.radial(radial).view(-1, self.convolution.num_paths, self.channels)
        basis = self.linear_out(self.convolution(self.linear_in(x), harmonics, weights, graph.edge_index))
        if self.density is not None:
            of_edge = torch.tanh(self.density(radial).square())
            total = 1.0 + sum_by_centre(of_edge, graph.edge_index[0], x.shape[0])
            basis = basis / total.unsqueeze(-1)
        if not self.residual:
            basis = self.skip(basis, self._one_hot, graph.species)
        update: Tensor = self.linear_update(self.contraction(basis, graph.species))
        return update + self.skip(x, self._one_hot, graph.species) if self.residual else update


@register_model(
    "mace",
    config=MACEConfig,
    presets={
        "small": {"channels": 32, "hidden_l_max": 1},
        "medium": {"channels": 64, "hidden_l_max": 1},
        "large": {"channels": 128, "hidden_l_max": 2},
    },
)
class MACE(AtomicEnergyModel):
    """MACE-like: few layers of message passing whose messages couple many neighbours at once."""

    readout_modules = ("readouts", "force_readouts")
    can_embed_charge = True

    def __init__(self, config: MACEConfig, species: Sequence[str]) -> None:
        super().__init__(config, species)
        channels, direct, count = config.channels, config.force_head == "direct", len(self.species)
        self.interaction_depth = config.num_interactions
        self.species_embedding = nn.Parameter(torch.randn(count, channels))
        self.embedding_scale = 1.0 / math.sqrt(count)
        self.electrons = ElectronEmbedding(channels) if config.embed_charge else None
        self.edges = config.edges(self.species)
        hidden = o3.Irreps.spherical_harmonics(config.hidden_l_max)
        final = o3.Irreps("0e + 1o") if direct else o3.Irreps("0e")
        layers, readouts = [], []
        irreps = o3.Irreps("0e")
        for index in range(config.num_interactions):
            last = index == config.num_interactions - 1
            residual = index > 0 or config.residual_first
            layers.append(MACELayer(irreps, final if last else hidden, config, count, residual=residual))
            widths = (channels, *(config.readout_hidden if last else ()), 1)
            readouts.append(ScalarMLP(widths, nonlinearity=config.readout_gate, gain=1.0, normalized=True))
            irreps = layers[-1].irreps_out
        self.layers = nn.ModuleList(layers)
        self.readouts = nn.ModuleList(readouts)
        self.force_readouts = nn.ModuleList(
            DirectForces(layer.irreps_out, channels) for layer in layers if direct
        )

    @classmethod
    def least_weights(cls, config: MACEConfig, species: Sequence[str]) -> int:  # type: ignore[override]
        """Of every layer what one on scalars has, see :class:`AtomicEnergyModel`."""
        channels, degrees = config.channels, config.l_max + 1
        radial = num_weights((config.num_bessel, *config.radial_hidden, degrees * channels))
        linear = (degrees + 2) * channels**2
        ends = len(species) * channels + num_weights((channels, *config.readout_hidden, 1))
        return ends + config.num_interactions * (radial + linear)

    @classmethod
    def seconds_to_build(cls, config: MACEConfig) -> float:  # type: ignore[override]
        """Measured, see :class:`AtomicEnergyModel`: products have a factor of (l_max + 1)² numbers for each order."""
        return config.num_interactions * (2e-3 + 2e-6 * (config.l_max + 1) ** (2 * config.correlation))

    def forward(self, graph: AtomGraph, vectors: Tensor) -> Tensor:
        """One energy per atom, see :class:`AtomicEnergyModel`."""
        return self._energies(self.features(graph, vectors))

    @torch.jit.export
    def energies_and_forces(self, graph: AtomGraph, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Energies (N,) and direct forces (N, 3), see :class:`AtomicEnergyModel`."""
        features = self.features(graph, vectors)
        forces = torch.zeros((features[0].shape[0], 3), dtype=vectors.dtype, device=vectors.device)
        layer = 0
        for readout in self.force_readouts:
            forces = forces + readout(features[layer])
            layer += 1
        if layer == 0:
            raise ValueError("this model was built without a direct force head")
        return self._energies(features), forces

    def species_factor(self, name: str) -> float:
        """The embedding, and the species-dependent maps with their one-hot embedding, see the base class."""
        by_species = name == "species_embedding" or ".skip.weights." in name
        return self.embedding_scale if by_species else 1.0

    def features(self, graph: AtomGraph, vectors: Tensor) -> list[Tensor]:
        """Node features after every layer: (N, K, C) each, scalars first."""
        radial, harmonics = self.edges(vectors, graph)
        x = (self.species_embedding * self.embedding_scale)[graph.species]
        electrons = self.electrons
        if electrons is not None:
            x = x + electrons(graph, x)
        x = x.unsqueeze(1)
        features: list[Tensor] = []
        for layer in self.layers:
            x = layer(x, harmonics, radial, graph)
            features.append(x)
        return features

    def _energies(self, features: list[Tensor]) -> Tensor:
        energies = torch.zeros_like(features[0][:, 0, 0])
        layer = 0
        for readout in self.readouts:
            energies = energies + readout(features[layer][:, 0]).squeeze(-1)
            layer += 1  # noqa: SIM113
        return energies
