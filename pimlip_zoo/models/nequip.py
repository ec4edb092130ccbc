"""NequIP: equivariant message passing (Batzner et al., Nat. Commun. 13, 2453, 2022)."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from e3nn import o3
from pydantic import Field, NonNegativeInt
from torch import Tensor, nn

from pimlip_zoo.errors import InputError
from pimlip_zoo.graph import AtomGraph
from pimlip_zoo.models.base import AtomicEnergyModel, Count, ModelConfig, PositiveNumber, Widths
from pimlip_zoo.nn.convolution import Convolution, convolution_spec
from pimlip_zoo.nn.edges import EdgeEmbedding
from pimlip_zoo.nn.electrons import ElectronEmbedding
from pimlip_zoo.nn.gate import Gate
from pimlip_zoo.nn.linear import EquivariantLinear, ScalarBias, SpeciesLinear
from pimlip_zoo.nn.mlp import ScalarMLP, num_weights
from pimlip_zoo.nn.readout import DirectForces
from pimlip_zoo.registry import register_model

log = logging.getLogger("pimlip_zoo")


@dataclass(frozen=True, kw_only=True)
class NequIPConfig(ModelConfig):
    """Options of NequIP; the defaults are those of the paper where it has them."""

    num_layers: Count = 3
    """T, message-passing layers."""
    l_max: NonNegativeInt = 2
    """Highest degree of features and harmonics."""
    parity: bool = False
    """Features of both parities, or only those that the harmonics have."""
    channels: Count = 32
    """C, for every irrep."""
    channels_by_degree: tuple[Count, ...] = ()
    """Instead: channels of degree 0, 1, ... l_max, such as (128, 64, 32)."""
    reflections: bool = True
    """Features and harmonics have a parity (O(3)). Without, all are even (SO(3)): more paths, and a model that may
    tell mirror images apart."""
    radial_hidden: Widths = (64,)
    """Widths of the hidden layers of the radial MLP."""
    radial_normalized: bool = False
    """Scale the radial MLP's activations to unit second moment, as e3nn's perceptrons do."""
    num_bessel: Count = 8
    """B, radial basis functions."""
    bessel_trainable: bool = False
    """Learn the frequencies of the basis."""
    bessel_frequencies: tuple[PositiveNumber, ...] = ()
    """Frequencies in units of pi over the cutoff, one for each function; none: 1, 2, ... B."""
    cutoff_function: Literal["polynomial", "xplor"] = "polynomial"
    """What the radial functions are multiplied by."""
    cutoff_order: float = 6.0
    """p of the polynomial cutoff."""
    cutoff_onset: Annotated[float, Field(gt=0, lt=1)] = 0.9
    """Where the XPLOR cutoff begins to fall, in units of the cutoff."""
    solid_harmonics: bool = False
    """Multiply the harmonics of degree l by ``r^l`` (Å), as early SevenNet models do."""
    species_cutoffs: tuple[tuple[str, str, float], ...] = ()
    """(centre, neighbour, Å): shorter cutoffs for pairs of species, ``*`` for any; later ones win."""
    self_connection: bool = True
    """Linear self-interaction beside the convolution, from the second layer on."""
    self_connection_weights: Literal["embedding", "element", "shared"] = "embedding"
    """Of the self-connection: bilinear in the species' embedding, a set for each element, or one set for all."""
    self_connection_first: bool = False
    """A self-connection in the first layer, too; then an atom apart has an energy that is not its reference."""
    scalar_bias: bool = False
    """Constants that are added to the scalars before and after each sum over neighbours."""
    neighbor_norms: tuple[PositiveNumber, ...] = ()
    """What the sum over neighbours is divided by, layer by layer; none: the root of avg_num_neighbors."""
    resnet: bool = False
    """Add a layer's input to its output where their irreps agree: between the first and the last layer."""
    readout_hidden: Widths = ()
    """Widths of hidden layers of the readout; none: linear."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_lengths()
        if self.force_head == "direct" and not self.reflections:
            raise InputError(
                "a direct force head needs polar vectors, and without reflections there are none",
                key="force_head",
                hint="use conservative, or reflections=true",
            )
        self._require_vectors(self.l_max)

    def _check_lengths(self) -> None:
        """Options that list a value for each of something."""
        for name, count, each in (
            ("channels_by_degree", self.l_max + 1, "degree up to l_max"),
            ("neighbor_norms", self.num_layers, "layer"),
            ("bessel_frequencies", self.num_bessel, "radial function"),
        ):
            values = getattr(self, name)
            if values and len(values) != count:
                raise InputError(
                    f"{name} has {len(values)} values for {count}", key=name, hint=f"give one for each {each}"
                )

    @property
    def scalars(self) -> int:
        """Channels of degree 0."""
        return self.channels_by_degree[0] if self.channels_by_degree else self.channels

    @property
    def inner(self) -> int:
        """Channels that multiplicities of irreps multiply: one where degrees differ, and multiplicities say it all."""
        return 1 if self.channels_by_degree else self.channels

    def irreps(self, degrees: int, *, parity: bool) -> o3.Irreps:
        """Features up to that degree, of both parities or of that of the harmonics only."""
        irreps = []
        for degree in range(degrees + 1):
            copies = self.channels_by_degree[degree] if self.channels_by_degree else 1
            parities = (1, -1) if parity and self.reflections else (self._parity(degree),)
            irreps += [(copies, (degree, p)) for p in parities]
        return o3.Irreps(irreps)

    def harmonics(self) -> o3.Irreps:
        """Of the edges, as far as features see their parity."""
        return o3.Irreps([(1, (degree, self._parity(degree))) for degree in range(self.l_max + 1)])

    def _parity(self, degree: int) -> int:
        return (-1) ** degree if self.reflections else 1


class NequIPLayer(nn.Module):
    """Convolution with linear maps around it, self-connection, gate (paper, fig. 1c).

    Args:
        irreps_in: features that come in.
        irreps_out: features that are wanted; those that cannot be made are left out.
        config: the model's options.
        index: which layer.
        num_species: how many elements there are.
    """

    def __init__(
        self,
        irreps_in: o3.Irreps,
        irreps_out: o3.Irreps,
        config: NequIPConfig,
        *,
        index: int,
        num_species: int,
    ) -> None:
        super().__init__()
        # An isolated atom keeps its reference energy: nothing bypasses the first convolution unless it is asked for.
        self_connection = config.self_connection and (index > 0 or config.self_connection_first)
        channels = config.inner
        harmonics = config.harmonics()
        reachable = {ir for _, a in irreps_in for _, b in harmonics for ir in a * b}
        self.irreps_in = irreps_in
        self.irreps_out = o3.Irreps([(n, ir) for n, ir in irreps_out if ir in reachable])
        gate = Gate(self.irreps_out, "0e" if o3.Irrep("0e") in reachable else "0o")
        self.gate = gate
        norm = config.neighbor_norms[index] if config.neighbor_norms else 0.0
        scale = 1.0 / (norm or math.sqrt(config.avg_num_neighbors or 1.0))
        self.linear_in = EquivariantLinear(irreps_in, irreps_in, channels, channels, factor=scale)
        self.convolution = Convolution(convolution_spec(irreps_in, harmonics, gate.irreps_in), channels)
        self.radial = ScalarMLP(
            (config.num_bessel, *config.radial_hidden, self.convolution.num_weights * channels),
            gain=1.0 if config.radial_normalized else math.sqrt(2.0),
            normalized=config.radial_normalized,
        )
        self.linear_out = EquivariantLinear(self.convolution.irreps_out, gate.irreps_in, channels, channels)
        kind = config.self_connection_weights if self_connection else "none"
        by_element = kind == "element"
        self.self_connection = (
            SpeciesLinear(
                irreps_in,
                gate.irreps_in,
                channels,
                channels,
                num_species if by_element else config.scalars,
            )
            if kind in ("embedding", "element")
            else None
        )
        self.register_buffer("_one_hot", torch.eye(num_species) if by_element else None, persistent=False)
        self.shared_connection = (
            EquivariantLinear(irreps_in, gate.irreps_in, channels, channels) if kind == "shared" else None
        )
        # What is added to the scalars before the sum is divided by the norm as they are.
        self.bias_in = ScalarBias(irreps_in, channels, scale) if config.scalar_bias else None
        self.bias_out = ScalarBias(gate.irreps_in, channels) if config.scalar_bias else None
        self.residual = config.resnet and self_connection and self.irreps_out == irreps_in
        self.channels, self.num_weights = channels, self.convolution.num_weights

    def forward(
        self, x: Tensor, harmonics: Tensor, radial: Tensor, graph: AtomGraph, species_embedding: Tensor
    ) -> Tensor:
        """(N, K_in, C) -> (N, K_out, C)."""
        weights = self.radial(radial).view(-1, self.num_weights, self.channels)
        y = self.linear_in(x)
        if self.bias_in is not None:
            y = self.bias_in(y)
        y = self.convolution(y, harmonics, weights, graph.edge_index)
        y = self.linear_out(y)
        if self.self_connection is not None:
            one_hot = self._one_hot
            kinds = species_embedding if one_hot is None else one_hot
            y = y + self.self_connection(x, kinds, graph.species)
        if self.shared_connection is not None:
            y = y + self.shared_connection(x)
        if self.bias_out is not None:
            y = self.bias_out(y)
        y = self.gate(y)
        return x + y if self.residual else y


@register_model(
    "nequip",
    config=NequIPConfig,
    presets={
        "small": {"num_layers": 2, "channels": 32, "radial_hidden": (64,)},
        "compact": {"num_layers": 3, "channels": 16, "radial_hidden": (64,)},
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
        channels, direct = config.scalars, config.force_head == "direct"
        self.interaction_depth = config.num_layers
        self.num_scalars = channels // config.inner
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
            frequencies=config.bessel_frequencies,
            cutoff_onset=config.cutoff_onset if config.cutoff_function == "xplor" else None,
            solid=config.solid_harmonics,
        )
        hidden = config.irreps(config.l_max, parity=config.parity)
        last = config.irreps(1 if direct else 0, parity=False)
        layers, irreps = [], config.irreps(0, parity=False)
        for index in range(config.num_layers):
            layer = NequIPLayer(
                irreps,
                hidden if index < config.num_layers - 1 else last,
                config,
                index=index,
                num_species=len(self.species),
            )
            irreps = layer.irreps_out
            layers.append(layer)
        self.layers = nn.ModuleList(layers)
        if config.resnet and not any(layer.residual for layer in layers):
            log.warning(
                "model.resnet has no effect: no layer's input is like its output where there are %d layers%s",
                config.num_layers,
                "" if config.self_connection else " without self-connections",
            )
        self.readout = ScalarMLP((channels, *config.readout_hidden, 1))
        self.force_readout = DirectForces(irreps, config.inner) if direct else None

    @classmethod
    def least_weights(cls, config: NequIPConfig, species: Sequence[str]) -> int:  # type: ignore[override]
        """Embedding, readout, and of every layer the scalars' part, see :class:`AtomicEnergyModel`."""
        layers, degrees = config.num_layers, config.l_max + 1
        channels = min(config.channels_by_degree or (config.channels,))
        # Paths from scalars to every degree in the first layer, back in the last, between any two in the others.
        paths = 1 if layers == 1 else 2 * degrees + (layers - 2) * degrees**2
        hidden = (config.num_bessel, *config.radial_hidden)
        radial = layers * num_weights(hidden) + paths * hidden[-1] * channels
        ends = len(species) * channels + num_weights((channels, *config.readout_hidden, 1))
        return ends + radial + layers * channels**2

    @classmethod
    def seconds_to_build(cls, config: NequIPConfig) -> float:  # type: ignore[override]
        """Measured, see :class:`AtomicEnergyModel`: paths go by the third power of the degrees, their numbers, too."""
        return config.num_layers * (2e-3 + 0.55e-6 * (config.l_max + 1) ** 6)

    def forward(self, graph: AtomGraph, vectors: Tensor) -> Tensor:
        """One energy per atom, see :class:`AtomicEnergyModel`."""
        return self.readout(self.scalars(self.features(graph, vectors))).squeeze(-1)

    @torch.jit.export
    def energies_and_forces(self, graph: AtomGraph, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Energies (N,) and direct forces (N, 3), see :class:`AtomicEnergyModel`."""
        features = self.features(graph, vectors)
        head = self.force_readout
        if head is None:
            raise ValueError("this model was built without a direct force head")
        return self.readout(self.scalars(features)).squeeze(-1), head(features)

    def species_factor(self, name: str) -> float:
        """Of self-connections with a set of weights for each element, see the base class."""
        config = self.config
        assert isinstance(config, NequIPConfig)
        by_element = config.self_connection_weights == "element" and ".self_connection." in name
        return len(self.species) ** -0.5 if by_element else 1.0

    def scalars(self, features: Tensor) -> Tensor:
        """(N, K, C) -> those of degree 0 in a row each."""
        return features[:, 0] if self.num_scalars == 1 else features[:, : self.num_scalars].squeeze(2)

    def features(self, graph: AtomGraph, vectors: Tensor) -> Tensor:
        """Node features after the last layer: (N, K, C), scalars first."""
        radial, harmonics = self.edges(vectors, graph)
        x = self.species_embedding[graph.species]
        electrons = self.electrons
        if electrons is not None:
            x = x + electrons(graph, x)
        x = x.unsqueeze(1 if self.num_scalars == 1 else 2)
        for layer in self.layers:
            x = layer(x, harmonics, radial, graph, self.species_embedding)
        return x
