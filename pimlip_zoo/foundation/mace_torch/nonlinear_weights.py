"""Weights of nonlinear interactions of ``mace-torch`` under this package's names and in its shapes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pimlip_zoo.foundation.mace_torch.weights import contraction_of, radial_columns
from pimlip_zoo.foundation.shapes import Weights, blocks_of, checked
from pimlip_zoo.models.mace_nonlinear import MACENonlinear, MACENonlinearConfig, NonlinearLayer
from pimlip_zoo.nn.radial_network import RadialNetwork

_LINEAR = {
    "linear_in": "linear_up",
    "linear_self": "linear_res",
    "linear_message": "linear_1",
    "linear_basis": "linear_2",
    "skip": "skip_tp",
}


def convert_nonlinear(
    model: MACENonlinear, theirs: Weights, head: int, heads: int, scale: float, states: tuple[str, ...] | None
) -> dict[str, Tensor]:
    """The state dict that makes a model compute what the ``ScaleShiftMACE`` computes.

    Args:
        model: where the weights are to go.
        theirs: the state dict of the ``ScaleShiftMACE``, with its ``U_matrix`` buffers.
        head: which of its heads to take.
        heads: how many it has.
        scale: what energies are multiplied by afterwards; there, the energy of the embedding is not.
        states: names of the embedded properties in their order, if there are any.

    Raises:
        InputError: when shapes or couplings do not fit.
    """
    theirs = {
        name: value.to(torch.float64) if value.is_floating_point() else value
        for name, value in theirs.items()
    }
    config = model.config
    assert isinstance(config, MACENonlinearConfig)
    channels, count = config.channels, len(model.species)
    ours = {"species_embedding": theirs["node_embedding.linear.weight"].reshape(count, channels)}
    if config.bessel_trainable:
        frequencies = theirs["radial_embedding.bessel_fn.bessel_weights"] * model.cutoff
        ours["edges.basis.frequencies"] = frequencies.reshape(-1)
    if states is not None:
        ours |= _states(config, theirs, states)
    if config.embedding_readout:
        weight = theirs["embedding_readout.linear.weight"].reshape(channels, heads)[:, head : head + 1]
        ours["embedding_readout.weights.0"] = weight / scale
    for index, layer in enumerate(model.layers):
        assert isinstance(layer, NonlinearLayer)
        converted = _layer(layer, theirs, f"interactions.{index}.", f"products.{index}.", count)
        ours |= {f"layers.{index}.{name}": value for name, value in converted.items()}
    last = len(model.readouts) - 1
    for index in range(last):
        weight = theirs[f"readouts.{index}.linear.weight"].reshape(channels, heads)
        ours[f"readouts.{index}.weights.0"] = weight[:, head : head + 1]
    ours |= {
        f"readouts.{last}.{k}": v
        for k, v in _readout(config, theirs, f"readouts.{last}.", head, heads).items()
    }
    return checked(model, ours)


def _states(config: MACENonlinearConfig, theirs: Weights, order: tuple[str, ...]) -> dict[str, Tensor]:
    """Their layer after the joined embeddings, applied to each table by itself: it has no bias."""
    tables = [theirs[f"joint_embedding.embedders.{name}.weight"] for name in order]
    project = theirs["joint_embedding.project.0.weight"]
    parts = torch.split(project, [table.shape[1] for table in tables], dim=1)
    made = {name: table @ part.T for name, table, part in zip(order, tables, parts, strict=True)}
    return {
        "electrons.of_charge": made["total_charge"],
        "electrons.of_multiplicity": made["total_spin"][-config.max_multiplicity :],
    }


def _layer(
    layer: NonlinearLayer, theirs: Weights, interaction: str, product: str, num_species: int
) -> dict[str, Tensor]:
    ours: dict[str, Tensor] = {}
    for name, their_name in _LINEAR.items():
        ours |= blocks_of(name, getattr(layer, name), theirs, f"{interaction}{their_name}")
    ours |= blocks_of("linear_update", layer.linear_update, theirs, f"{product}linear")
    for name, their_name in (("radial", "conv_tp_weights"), ("density", "density_fn")):
        network = getattr(layer, name)
        made = _network(network, theirs, interaction, f"{their_name}.net.", num_species)
        ours |= {f"{name}.{key}": value for key, value in made.items()}
    last, spec = len(layer.radial.weights) - 1, layer.convolution.spec
    for key in (f"radial.weights.{last}", f"radial.biases.{last}"):
        ours[key] = radial_columns(spec, ours[key].reshape(-1, ours[key].shape[-1])).reshape(ours[key].shape)
    ours |= {"alpha": theirs[f"{interaction}alpha"], "beta": theirs[f"{interaction}beta"]}
    ours["contraction.weights"] = contraction_of(
        layer.contraction, theirs, f"{product}symmetric_contractions."
    )
    return ours


def _network(
    network: RadialNetwork, theirs: Weights, interaction: str, prefix: str, num_species: int
) -> dict[str, Tensor]:
    """Their first layer sees embeddings of both species, which are tables once multiplied with its weights."""
    prefix = f"{interaction}{prefix}"
    source, target = (
        theirs[f"{interaction}{name}_embedding.weight"].reshape(num_species, -1) / math.sqrt(num_species)
        for name in ("source", "target")
    )
    channels = source.shape[1]
    first = theirs[f"{prefix}0.weight"].T
    radial, of_source, of_target = torch.split(first, [first.shape[0] - 2 * channels, channels, channels])
    ours = {
        "radial": radial / network.scale_in,
        "neighbour": source @ of_source / network.scale_in,
        "centre": (target @ of_target + theirs[f"{prefix}0.bias"]) / network.scale_in,
    }
    for layer, scale in enumerate(network.scales):
        for name in ("weight", "bias"):
            ours[f"norms.{layer}.{name}"] = theirs[f"{prefix}{3 * layer + 1}.{name}"]
        ours[f"weights.{layer}"] = theirs[f"{prefix}{3 * layer + 3}.weight"].T / scale
        ours[f"biases.{layer}"] = theirs[f"{prefix}{3 * layer + 3}.bias"]
    return ours


def _readout(
    config: MACENonlinearConfig, theirs: Weights, prefix: str, head: int, heads: int
) -> dict[str, Tensor]:
    """The hidden units of one head; those of the others are set to zero there."""
    width = config.readout_width
    units = slice(head * width, (head + 1) * width)
    # Both packages divide by the square root of the number of hidden units, here without those of other heads.
    fewer = 1.0 / math.sqrt(heads)
    middle = theirs[f"{prefix}linear_mid.weight"].reshape(heads * width, heads * width)
    out = theirs[f"{prefix}linear_2.weight"].reshape(heads * width, heads)
    return {
        "into": theirs[f"{prefix}linear_1.weight"].reshape(config.channels, -1)[:, units],
        "middle": middle[units, units] * fewer,
        "middle_bias": theirs[f"{prefix}linear_mid.bias"][units],
        "out": out[units, head : head + 1] * fewer,
        "out_bias": theirs[f"{prefix}linear_2.bias"][head : head + 1],
    }
