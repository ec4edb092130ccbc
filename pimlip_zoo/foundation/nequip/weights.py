"""Weights of ``nequip`` and ``nequip-allegro`` under this package's names and in its shapes.

Only tensors are handled here; those packages' files are read in ``stored``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from e3nn import o3
from torch import Tensor

from pimlip_zoo.errors import InputError
from pimlip_zoo.models.allegro import Allegro, AllegroConfig
from pimlip_zoo.models.base import AtomicEnergyModel
from pimlip_zoo.models.nequip import NequIP, NequIPConfig, NequIPLayer
from pimlip_zoo.nn.linear import EquivariantLinear, SpeciesLinear

Weights = Mapping[str, Tensor]


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
        ours |= _linear(theirs, f"{there}.linear_1", f"{here}.linear_in", layer.linear_in)
        ours |= _linear(theirs, f"{there}.linear_2", f"{here}.linear_out", layer.linear_out)
        if layer.self_connection is not None:
            ours |= _linear(theirs, f"{there}.sc", f"{here}.self_connection", layer.self_connection)
    return _checked(model, ours)


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
    return _checked(model, ours)


def _mlp(theirs: Weights, there: str, here: str) -> dict[str, Tensor]:
    """Weights of an MLP; in the package the modules 0, 2, 4 ... are the linear ones."""
    start = f"{there}.mlp."
    names = [name for name in theirs if name.startswith(start) and name.endswith(".weight")]
    names.sort(key=lambda name: int(name.removeprefix(start).partition(".")[0]))
    return {f"{here}.weights.{n}": theirs[name] for n, name in enumerate(names)}


def _linear(
    theirs: Weights, there: str, here: str, linear: EquivariantLinear | SpeciesLinear
) -> dict[str, Tensor]:
    """e3nn keeps one vector, blocks in the order of the input's irreps; ours go by the output's."""
    flat = theirs[f"{there}.weight"]
    irreps_in, irreps_out = o3.Irreps(linear.irreps_in), o3.Irreps(linear.irreps_out)
    matching = [irrep for _, irrep in irreps_out if irrep in irreps_in]
    shapes = dict(zip(matching, (weight.shape for weight in linear.weights), strict=True))
    expected = sum(shape.numel() for shape in shapes.values())
    if flat.numel() != expected:
        raise InputError(f"{there} has {flat.numel()} weights in the file, and {expected} here")
    found: dict[o3.Irrep, Tensor] = {}
    start = 0
    for _, irrep in irreps_in:
        if irrep in shapes:
            found[irrep] = flat[start : start + shapes[irrep].numel()].reshape(shapes[irrep])
            start += shapes[irrep].numel()
    return {f"{here}.weights.{n}": found[irrep] for n, irrep in enumerate(matching)}


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


def _checked(model: AtomicEnergyModel, ours: Weights) -> dict[str, Tensor]:
    expected = {name: parameter.shape for name, parameter in model.named_parameters()}
    for name, shape in expected.items():
        if name not in ours or ours[name].shape != shape:
            found = "missing" if name not in ours else f"of the shape {tuple(ours[name].shape)}"
            raise InputError(f"the weights of {name} are {found}, expected {tuple(shape)}")
    if spare := sorted(set(ours) - set(expected)):
        raise InputError(f"has weights {spare[0]} that a model with its options does not have")
    return {name: value.to(torch.float64).contiguous() for name, value in ours.items()}
