"""Allegro: strictly local equivariant features of edges (Musaelian et al., Nat. Commun. 14, 579, 2023)."""

from __future__ import annotations

import itertools
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
from pimlip_zoo.nn.contraction import EdgeContraction, EdgeEnvironment, EdgeTensors, contraction_spec
from pimlip_zoo.nn.edges import EdgeEmbedding
from pimlip_zoo.nn.linear import EquivariantLinear
from pimlip_zoo.nn.mlp import ScalarMLP, num_weights
from pimlip_zoo.nn.pair import PairEmbedding
from pimlip_zoo.registry import register_model


@dataclass(frozen=True, kw_only=True)
class AllegroConfig(ModelConfig):
    """Options of Allegro."""

    num_layers: Count = 2
    """T, tensor products of an edge with its environment: (T + 1)-body correlations and beyond."""
    l_max: NonNegativeInt = 2
    """Highest degree of features and harmonics."""
    parity: bool = True
    """Features of both parities, or only those that the harmonics have."""
    scalar_channels: Count = 64
    """Width of the scalar latents."""
    tensor_channels: Count = 32
    """C, channels of the tensor features."""
    embed_channels: int | None = None
    """Width of the embedding of distance and pair of species, even; None: scalar_channels."""
    embed_hidden: Widths = (64,)
    """Hidden widths of the MLP on that embedding."""
    latent_hidden: Widths = (64,)
    """Hidden widths of the latent MLP of every layer."""
    readout_hidden: Widths = (32,)
    """Hidden widths of the readout; none: linear."""
    update: Literal["dense", "residual"] = "dense"
    """From layer to layer: ``residual`` as in the paper, with cutoff function, residual weights, mixed
    channels; ``dense`` as in its authors' package since: each layer sees all latents before it."""
    path_channels: bool = True
    """Weights of the tensor product for every path and channel, or one per path."""
    nonlinearity: str = "silu"
    """Activation of the MLPs."""
    num_bessel: Count = 8
    """B, radial basis functions."""
    bessel_trainable: bool = False
    """Learn the frequencies of the basis."""
    cutoff_order: float = 6.0
    """p of the polynomial cutoff."""
    species_cutoffs: tuple[tuple[str, str, float], ...] = ()
    """(centre, neighbour, Å): shorter cutoffs for pairs of species, ``*`` for any; later ones win."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_vectors(self.l_max)

    def mlp(self, inputs: int, hidden: tuple[int, ...], outputs: int) -> ScalarMLP:
        """An MLP with this model's activation."""
        return ScalarMLP((inputs, *hidden, outputs), nonlinearity=self.nonlinearity)


class DenseUpdate(nn.Module):
    """New latents from all latents so far and the invariants of the tensor product; all are kept.

    Args:
        config: the model's options.
        layer: counted from 0.
        num_weights: environment weights for the next layer, 0 in the last one.
    """

    def __init__(self, config: AllegroConfig, layer: int, num_weights: int) -> None:
        super().__init__()
        self.width = config.scalar_channels
        inputs = (layer + 1) * self.width + config.tensor_channels
        self.latent = config.mlp(inputs, config.latent_hidden, self.width + num_weights)

    def forward(self, latents: Tensor, invariants: Tensor, envelope: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """(E, F * (layer + 1)), (E, C), (E, 1) -> (E, F * (layer + 2)), (E, num_weights).

        Without biases everything vanishes at the cutoff as the embedding does; the envelope is not needed.
        """
        out = self.latent(torch.cat([latents, invariants], dim=1))
        return torch.cat([latents, out[:, : self.width]], dim=1), out[:, self.width :]


class ResidualUpdate(nn.Module):
    """The paper's update: ``x <- (x + a u(r) MLP(x, invariants)) / sqrt(1 + a²)``, here with a = 1/2.

    Args:
        config: the model's options.
        num_weights: environment weights for the next layer, 0 in the last one.
    """

    ratio = 0.5

    def __init__(self, config: AllegroConfig, num_weights: int) -> None:
        super().__init__()
        width = config.scalar_channels
        self.latent = config.mlp(width + config.tensor_channels, config.latent_hidden, width)
        self.environment = ScalarMLP((width, num_weights)) if num_weights > 0 else None
        self.old = 1.0 / math.sqrt(1.0 + self.ratio**2)
        self.new = self.ratio * self.old

    def forward(self, latents: Tensor, invariants: Tensor, envelope: Tensor) -> tuple[Tensor, Tensor]:
        """(E, F), (E, C), (E, 1) -> (E, F), (E, num_weights)."""
        change = self.latent(torch.cat([latents, invariants], dim=1)) * envelope
        latents = self.old * latents + self.new * change
        weights = latents[:, :0] if self.environment is None else self.environment(latents)
        return latents, weights


class AllegroLayer(nn.Module):
    """Edge features times the environment of their centre; the invariants of the result update the latents.

    Args:
        config: the model's options.
        layer: counted from 0.
        irreps_in: components of the edge features.
        irreps_out: components of those after the product, 0e first.
    """

    def __init__(
        self, config: AllegroConfig, layer: int, irreps_in: o3.Irreps, irreps_out: o3.Irreps
    ) -> None:
        super().__init__()
        harmonics = o3.Irreps.spherical_harmonics(config.l_max)
        channels = config.tensor_channels
        num_weights = len(harmonics) * channels if layer < config.num_layers - 1 else 0
        spec = contraction_spec(irreps_in, harmonics, irreps_out)
        self.contraction = EdgeContraction(spec, channels, per_channel=config.path_channels)
        residual = config.update == "residual"
        self.mixing = EquivariantLinear(irreps_out, irreps_out, channels, channels) if residual else None
        self.update = (
            ResidualUpdate(config, num_weights) if residual else DenseUpdate(config, layer, num_weights)
        )

    def forward(
        self, tensors: Tensor, latents: Tensor, environment: Tensor, envelope: Tensor, centre: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Tensors (E, K_in, C), latents (E, F'), environments (N, K, C) -> tensors, latents, next weights."""
        tensors = self.contraction(tensors, environment, centre)
        if self.mixing is not None:
            tensors = self.mixing(tensors)
        latents, weights = self.update(latents, tensors[:, 0], envelope)
        return tensors, latents, weights


@register_model(
    "allegro",
    config=AllegroConfig,
    presets={
        "small": {},
        "medium": {
            "scalar_channels": 128,
            "tensor_channels": 64,
            "embed_hidden": (128,),
            "latent_hidden": (128, 128),
            "readout_hidden": (64,),
        },
        "large": {
            "num_layers": 3,
            "l_max": 3,
            "scalar_channels": 128,
            "tensor_channels": 64,
            "embed_hidden": (128,),
            "latent_hidden": (256, 256),
            "readout_hidden": (128,),
        },
    },
)
class Allegro(AtomicEnergyModel):
    """Allegro-like: strictly local, tensor products of edges with their centre's environment."""

    readout_modules = ("readout", "force_readout")
    can_embed_charge = True

    def __init__(self, config: AllegroConfig, species: Sequence[str]) -> None:
        super().__init__(config, species)
        self.interaction_depth = 1
        self.edges = EdgeEmbedding(
            self.species,
            cutoff=config.cutoff,
            l_max=config.l_max,
            num_basis=config.num_bessel,
            trainable=config.bessel_trainable,
            prefactor=1.0 / math.pi,
            cutoff_order=config.cutoff_order,
            species_cutoffs=config.species_cutoffs,
        )
        irreps = layer_irreps(config)
        width, channels, num_irreps = config.scalar_channels, config.tensor_channels, len(irreps[0])
        embedding = width if config.embed_channels is None else config.embed_channels
        self.embedding = PairEmbedding(
            len(self.species), config.num_bessel, embedding, electrons=config.embed_charge
        )
        self.embed_mlp = config.mlp(embedding, config.embed_hidden, width)
        self.embed_tensors = ScalarMLP((width, num_irreps * channels))
        self.embed_latents = ScalarMLP((width, width + num_irreps * channels))
        self.tensors = EdgeTensors(irreps[0], channels)
        self.environment = EdgeEnvironment(irreps[0], channels)
        pairs = itertools.pairwise(irreps)
        self.layers = nn.ModuleList(
            AllegroLayer(config, n, before, after) for n, (before, after) in enumerate(pairs)
        )
        latents = width * (config.num_layers + 1 if config.update == "dense" else 1)
        self.readout = config.mlp(latents, config.readout_hidden, 1)
        direct = config.force_head == "direct"
        self.force_readout = config.mlp(latents, config.readout_hidden, channels + 1) if direct else None
        self.scale = 1.0 / math.sqrt(config.avg_num_neighbors or 1.0)
        self.width, self.channels, self.num_irreps = width, channels, num_irreps

    @classmethod
    def least_weights(cls, config: AllegroConfig, species: Sequence[str]) -> int:  # type: ignore[override]
        """Its perceptrons, with a single component of the tensors, see :class:`AtomicEnergyModel`."""
        layers, width, channels = config.num_layers, config.scalar_channels, config.tensor_channels
        dense = config.update == "dense"
        embedding = width if config.embed_channels is None else config.embed_channels
        latents = width * (layers + 1 if dense else 1)
        first = (width + channels, *config.latent_hidden, width)
        more = width * first[1] * (layers * (layers - 1) // 2) if dense else 0
        ends = num_weights((embedding, *config.embed_hidden, width)) + width * (width + 2 * channels)
        ends += (len(species) + config.num_bessel) * embedding + num_weights(
            (latents, *config.readout_hidden, 1)
        )
        return ends + layers * num_weights(first) + more

    @classmethod
    def seconds_to_build(cls, config: AllegroConfig) -> float:  # type: ignore[override]
        """Measured, see :class:`AtomicEnergyModel`: paths go by the third power of the degrees, their numbers, too."""
        return config.num_layers * (4e-3 + 2.2e-6 * (config.l_max + 1) ** 6)

    def forward(self, graph: AtomGraph, vectors: Tensor) -> Tensor:
        """One energy per atom, see :class:`AtomicEnergyModel`."""
        latents, _, _ = self.features(graph, vectors)
        return self._atomic_energy(latents, graph)

    @torch.jit.export
    def energies_and_forces(self, graph: AtomGraph, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Energies (N,) and direct forces (N, 3), see :class:`AtomicEnergyModel`.

        An edge's force acts on its centre and, reversed, on its neighbour: all forces add up to zero.
        """
        latents, tensors, directions = self.features(graph, vectors)
        head = self.force_readout
        if head is None:
            raise ValueError("this model was built without a direct force head")
        strength = head(latents)
        mixed = (tensors[:, 1:4] * strength[:, 1:].unsqueeze(1)).sum(2) / math.sqrt(float(self.channels))
        force = self.scale * (mixed + strength[:, :1] * directions)
        forces = torch.zeros((graph.species.shape[0], 3), dtype=force.dtype, device=force.device)
        forces = forces.index_add(0, graph.edge_index[0], force).index_add(0, graph.edge_index[1], -force)
        return self._atomic_energy(latents, graph), forces

    def features(self, graph: AtomGraph, vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of every edge: latents (E, F'), last tensors (E, K, C), harmonics of degree 1 (E, 3)."""
        centre, num_atoms = graph.edge_index[0], graph.species.shape[0]
        radial, harmonics = self.edges(vectors, graph)
        length = torch.linalg.vector_norm(vectors, dim=1)
        envelope = self.edges.envelope(self.edges.reduced_length(length, graph)).unsqueeze(-1)
        pair = self.embed_mlp(self.embedding(radial, graph))
        tensors = self.tensors(harmonics, self.embed_tensors(pair).view(-1, self.num_irreps, self.channels))
        projected = self.embed_latents(pair)
        latents, weights = projected[:, : self.width], projected[:, self.width :]
        for layer in self.layers:
            weights = weights.reshape(-1, self.num_irreps, self.channels)
            environment = self.scale * self.environment(harmonics, weights, graph.edge_index, num_atoms)
            tensors, latents, weights = layer(tensors, latents, environment, envelope, centre)
        return latents, tensors, harmonics[:, 1:4]

    def _atomic_energy(self, latents: Tensor, graph: AtomGraph) -> Tensor:
        """Edge energies, added at their centres."""
        energy = self.readout(latents).squeeze(-1)
        # Both atoms of an edge feel its energy: hence the 2.
        total = sum_by_centre(energy, graph.edge_index[0], graph.species.shape[0])
        return total * (self.scale / math.sqrt(2.0))


def layer_irreps(config: AllegroConfig) -> list[o3.Irreps]:
    """Components of the edge features before each layer and after the last: possible ones, if of use."""
    harmonics = o3.Irreps.spherical_harmonics(config.l_max)
    allowed = harmonics
    if config.parity:
        allowed = o3.Irreps([(1, (degree, p)) for degree in range(config.l_max + 1) for p in (1, -1)])
    last = o3.Irreps("0e + 1o" if config.force_head == "direct" else "0e")
    irreps = [harmonics]
    for wanted in [allowed] * (config.num_layers - 1) + [last]:
        reachable = {ir for _, a in irreps[-1] for _, b in harmonics for ir in a * b}
        irreps.append(o3.Irreps([(1, ir) for _, ir in wanted if ir in reachable]))
    for index in reversed(range(config.num_layers)):
        after = irreps[index + 1]
        useful = [ir for _, ir in irreps[index] if any(out in after for _, b in harmonics for out in ir * b)]
        irreps[index] = o3.Irreps([(1, ir) for ir in useful])
    return irreps
