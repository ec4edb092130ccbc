"""Weights of ``nequip`` and ``nequip-allegro`` under this package's names and in its shapes.

Only tensors are handled here; those packages' files are read in ``stored``.
"""

from __future__ import annotations

import math

from torch import Tensor

from pimlip_zoo.errors import InputError
from pimlip_zoo.foundation.shapes import Weights, blocks_of, checked
from pimlip_zoo.models.allegro import Allegro, AllegroConfig
from pimlip_zoo.models.nequip import NequIP, NequIPConfig, NequIPLayer


def nequip_weights(model: NequIP, theirs: Weights) -> dict[str, Tensor]:
    """The state dict that makes a model compute what a ``NequIPGNNModel`` with the same options computes.

    Raises:
        InputError: when weights are missing or have other shapes.
    """
    assert isinstance(model.config, NequIPConfig)
    ours = {"species_embedding": theirs["type_embed.embed_module.weight"]}
    if model.config.bessel_trainable:
        ours["edges.basis.frequencies"] = math.pi * theirs["bessel_encode.bessel_weights"].reshape(-1)
    ours |= _mlp(theirs, "per_atom_energy_readout.mlp_module", "readout")
    for index, layer in enumerate(model.layers):
        assert isinstance(layer, NequIPLayer)
        there, here = f"layer{index}_convnet.conv", f"layers.{index}"
        ours |= _mlp(theirs, f"{there}.edge_mlp", f"{here}.radial")
        ours |= blocks_of(f"{here}.linear_in", layer.linear_in, theirs, f"{there}.linear_1")
        ours |= blocks_of(f"{here}.linear_out", layer.linear_out, theirs, f"{there}.linear_2")
        if layer.self_connection is not None:
            ours |= blocks_of(f"{here}.self_connection", layer.self_connection, theirs, f"{there}.sc")
    return checked(model, ours)


def allegro_weights(model: Allegro, theirs: Weights) -> dict[str, Tensor]:
    """The state dict that makes a model compute what an ``AllegroModel`` with the same options computes.

    Raises:
        InputError: when weights are missing or have other shapes.
    """
    config, embed = model.config, "radial_chemical_embed.type_embed"
    assert isinstance(config, AllegroConfig)
    ours = {
        "embedding.centre": theirs[f"{embed}.center_embed.weight"],
        "embedding.neighbour": theirs[f"{embed}.neighbor_embed.weight"],
    }
    if config.bessel_trainable:
        frequencies = theirs["radial_chemical_embed.bessel_encode.bessel_weights"]
        ours["edges.basis.frequencies"] = math.pi * frequencies.reshape(-1)
    for there, here in (
        (f"{embed}.basis_linear", "embedding.radial"),
        ("scalar_embed_mlp.mlp_module", "embed_mlp"),
        ("edge_readout.mlp_module", "readout"),
    ):
        ours |= _mlp(theirs, there, here)
    width = config.scalar_channels
    for there, here, first in (
        ("tensor_embed.env_embed_linear", "embed_tensors", 0),
        ("allegro.first_layer_env_embed_projection", "embed_latents", width),
    ):
        ours |= _channels_inside(_mlp(theirs, there, here), config, first)
    for n in range(config.num_layers):
        latent = _mlp(theirs, f"allegro.latents.{n}", f"layers.{n}.update.latent")
        ours |= latent if n == config.num_layers - 1 else _channels_inside(latent, config, width)
        weight = theirs[f"allegro.tps.{n}.weights"]
        ours[f"layers.{n}.contraction.weights"] = weight.t() if config.path_channels else weight[:, None]
    return checked(model, ours)


def _mlp(theirs: Weights, there: str, here: str) -> dict[str, Tensor]:
    """Weights of an MLP; in the package the modules 0, 2, 4 ... are the linear ones."""
    start = f"{there}.mlp."
    names = [name for name in theirs if name.startswith(start) and name.endswith(".weight")]
    names.sort(key=lambda name: int(name.removeprefix(start).partition(".")[0]))
    return {f"{here}.weights.{n}": theirs[name] for n, name in enumerate(names)}


def _channels_inside(weights: Weights, config: AllegroConfig, first: int) -> dict[str, Tensor]:
    """The package has the channel outside and the irrep inside in the last layer's outputs; here it is the reverse."""
    *_, last = weights
    weight = weights[last].clone()
    irreps, channels = config.l_max + 1, config.tensor_channels
    if weight.shape[1] != first + irreps * channels:
        raise InputError(
            f"{last} has {weight.shape[1]} outputs where {first + irreps * channels} are expected"
        )
    tensor = weight[:, first:].reshape(-1, channels, irreps)
    weight[:, first:] = tensor.transpose(1, 2).reshape(-1, irreps * channels)
    return {**weights, last: weight}
