"""Models of ``mace-torch`` with nonlinear interactions, as MACE-MH and MACE-OMOL: their options and sizes."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pimlip_zoo.errors import InputError
from pimlip_zoo.foundation.mace_torch.layout import check_layout, irreps_text, parts_of
from pimlip_zoo.foundation.mace_torch.nonlinear_weights import convert_nonlinear
from pimlip_zoo.foundation.mace_torch.options import (
    check_activation,
    check_attribute,
    common_options,
    heads_of,
    plain,
    same,
)
from pimlip_zoo.foundation.mace_torch.sizes import check_count, check_most
from pimlip_zoo.foundation.unpickle import Named, Record
from pimlip_zoo.models.mace_nonlinear import DENSITY_WIDTH, MACENonlinear, MACENonlinearConfig
from pimlip_zoo.nn.radial_network import LAYER_NORM_EPS

NONLINEAR = "RealAgnosticResidualNonLinearInteractionBlock"

_MOST_HIDDEN = 16
_REQUIRED = {"use_agnostic_product": True, "apply_cutoff": False}
_CHARGE, _SPIN = "total_charge", "total_spin"


def is_nonlinear(record: Record) -> bool:
    """Whether all layers are of that kind."""
    layers = [layer.name for layer in record["interactions"]]
    if NONLINEAR in layers and set(layers) != {NONLINEAR}:
        raise InputError(f"has the layers {', '.join(layers)}, a mixture that is not supported")
    return NONLINEAR in layers


def import_nonlinear(
    record: Record, weights: Mapping[str, Tensor], species: Sequence[str], *, head: int, scale: float
) -> MACENonlinear:
    """The model in float64.

    Args:
        record: the ``ScaleShiftMACE``.
        weights: its state dict.
        species: chemical symbols in its order.
        head: which of its heads.
        scale: what the potential multiplies the model's energies by.

    Raises:
        InputError: for what is not supported, by its name.
    """
    for name, value in _REQUIRED.items():
        if record[name] is not value:
            raise InputError(
                f"was built with {name} = {plain(record[name])}, which is not supported with {NONLINEAR}"
            )
    check_attribute(record["radial_embedding"], "apply_cutoff", expected=False)
    states = _states(record)
    config = _config(record, weights, species, states)
    _check_sizes(config, weights, len(species), states)
    check_layout(record, config)
    _check_blocks(record)
    if config.embedding_readout and scale == 0.0:
        raise InputError("has an embedding readout and the scale 0")
    model = MACENonlinear(config, species).to(torch.float64)
    model.load_state_dict(
        convert_nonlinear(
            model, weights, head, len(heads_of(record)), scale, None if states is None else states.order
        )
    )
    return model


@dataclass(frozen=True)
class _States:
    """The tables of charges and multiplicities that a file embeds."""

    order: tuple[str, ...]
    """Which comes first."""
    max_charge: int
    max_multiplicity: int
    sizes: dict[str, tuple[int, int]]
    """(rows, columns) of each table."""


def _states(record: Record) -> _States | None:
    embedding = record["joint_embedding"]
    if embedding is None:
        return None
    specs = embedding["specs"] if isinstance(embedding, Record) else None
    if not isinstance(specs, dict) or set(specs) != {_CHARGE, _SPIN}:
        names = " and ".join(map(str, specs)) if isinstance(specs, dict) else plain(specs)
        raise InputError(
            f"embeds {names[:80]} of a structure",
            hint=f"only {_CHARGE} and {_SPIN}, as MACE-OMOL does, are known",
        )
    for name, spec in specs.items():
        kind = (spec["type"], spec["per"])
        if kind != ("categorical", "graph"):
            raise InputError(
                f"embeds {name} as {' per '.join(map(str, kind))}", hint="only categorical per graph is known"
            )
    rows = {name: int(spec["num_classes"]) for name, spec in specs.items()}
    first = {name: int(spec.get("offset", 0)) for name, spec in specs.items()}
    if rows[_CHARGE] != 2 * first[_CHARGE] + 1:
        raise InputError(
            f"knows {rows[_CHARGE]} charges from {-first[_CHARGE]} on", hint="as many of each sign are known"
        )
    most = rows[_SPIN] - 1 - first[_SPIN]
    if first[_SPIN] < -1 or most < 1:
        raise InputError(f"knows {rows[_SPIN]} multiplicities with the offset {first[_SPIN]}")
    sizes = {name: (rows[name], int(spec["emb_dim"])) for name, spec in specs.items()}
    return _States(tuple(specs), first[_CHARGE], most, sizes)


def _config(
    record: Record, weights: Mapping[str, Tensor], species: Sequence[str], states: _States | None
) -> MACENonlinearConfig:
    common = common_options(record, weights, species)
    count, channels = common["num_interactions"], common["channels"]
    first = _edges(record, 0)
    edge_channels, edge_l_max = same("edge_irreps", [_edges(record, n) for n in range(1, count)] or [first])
    reduce_first = first[0] != channels
    if first[1] != 0 or (reduce_first and first[0] != edge_channels):
        raise InputError(f"gathers {first[0]} channels to degree {first[1]} in its first layer")
    return MACENonlinearConfig(
        **common,
        edge_channels=None if edge_channels == channels else edge_channels,
        edge_l_max=None if edge_l_max == common["hidden_l_max"] else edge_l_max,
        reduce_first=reduce_first,
        radial_hidden=same("radial MLP", [_hidden(x["conv_tp_weights"]) for x in record["interactions"]]),
        num_bessel=weights["radial_embedding.bessel_fn.bessel_weights"].numel(),
        readout_width=_readout_width(record, weights),
        last_readout_only=count > 1 and len(record["readouts"]) == 1,
        embedding_readout=record["embedding_readout"] is not None,
        embed_charge=states is not None,
        max_charge=states.max_charge if states else 0,
        max_multiplicity=states.max_multiplicity if states else 1,
    )


def _edges(record: Record, layer: int) -> tuple[int, int]:
    """Channels and highest degree of what a layer gathers."""
    parts = parts_of(record[f"interactions.{layer}.edge_irreps"])
    natural = [(parts[0][0], degree, (-1) ** degree) for degree in range(len(parts))]
    if parts != natural:
        raise InputError(
            f"interactions.{layer} has the edge_irreps {irreps_text(parts)[:80]}",
            hint="only equal channels of natural parity are known",
        )
    return parts[0][0], len(parts) - 1


def _hidden(network: Any) -> tuple[int, ...]:
    """Widths of the hidden layers of a radial network."""
    layers = list(network["net"])
    if not 4 <= len(layers) <= 3 * _MOST_HIDDEN or (len(layers) - 1) % 3:
        raise InputError(f"has a radial MLP of {len(layers)} steps, which is not supported")
    kinds = [layer.name for layer in layers]
    if kinds != ["Linear", "LayerNorm", "SiLU"] * (len(layers) // 3) + ["Linear"]:
        raise InputError(
            f"has a radial MLP of {', '.join(kinds)[:80]}", hint="Linear, LayerNorm and SiLU are known"
        )
    for norm in layers[1::3]:
        if norm["eps"] != LAYER_NORM_EPS:
            raise InputError(
                f"has a layer norm with eps = {plain(norm['eps'])}", hint=f"{LAYER_NORM_EPS} is known"
            )
    return tuple(int(norm["weight"].numel()) for norm in layers[1::3])


def _readout_width(record: Record, weights: Mapping[str, Tensor]) -> int:
    kinds = [readout.name for readout in record["readouts"]]
    last_only = len(kinds) == 1
    if (not last_only and len(kinds) != len(record["interactions"])) or set(kinds[:-1]) - {
        "LinearReadoutBlock"
    }:
        raise InputError(f"has the readouts {', '.join(kinds)}, which are not supported")
    if kinds[-1] != "NonLinearBiasReadoutBlock":
        raise InputError(
            f"has the readout {kinds[-1]} after {NONLINEAR}", hint="NonLinearBiasReadoutBlock is known"
        )
    if record["use_last_readout_only"] not in (None, last_only):
        raise InputError(f"has {len(kinds)} readouts and use_last_readout_only = {not last_only}")
    embedded = record["embedding_readout"]
    if embedded is not None and (embedded.name != "LinearReadoutBlock" or record["joint_embedding"] is None):
        raise InputError(f"has the embedding readout {embedded.name}", hint="LinearReadoutBlock is known")
    return weights[f"readouts.{len(kinds) - 1}.linear_mid.bias"].numel() // len(heads_of(record))


def _check_sizes(
    config: MACENonlinearConfig, weights: Mapping[str, Tensor], num_species: int, states: _States | None
) -> None:
    """Every size that the model will have is that of weights in the file, see :mod:`sizes`."""
    check_most(config, weights)
    channels, widths = config.channels, config.radial_hidden
    edges = config.edge_channels or channels
    degree = config.hidden_l_max if config.edge_l_max is None else config.edge_l_max
    check_count("node_embedding.linear.weight", weights, num_species * channels)
    for n in range(config.num_interactions):
        first = n == 0
        own = channels if first and not config.reduce_first else edges
        check_count(
            f"interactions.{n}.linear_up.weight", weights, channels * own * (1 if first else degree + 1)
        )
        check_count(f"interactions.{n}.linear_2.weight", weights, (config.l_max + 1) * channels**2)
        for name, hidden in (("conv_tp_weights", widths), ("density_fn", (DENSITY_WIDTH,))):
            sizes = (config.num_bessel + 2 * channels, *hidden)
            for k, (before, after) in enumerate(itertools.pairwise(sizes)):
                check_count(f"interactions.{n}.{name}.net.{3 * k}.weight", weights, before * after)
    for name, (rows, columns) in (states.sizes if states else {}).items():
        check_count(f"joint_embedding.embedders.{name}.weight", weights, rows * columns)


def _check_blocks(record: Record) -> None:
    """What layers compute between their weights."""
    for n, layer in enumerate(record["interactions"]):
        _hidden(layer["density_fn"])
        gate, place = layer["equivariant_nonlin"], f"gate in interactions.{n}"
        if not isinstance(gate, Record):
            raise InputError(f"interactions.{n} has no gate")
        if gate.name == "GatedEquivariantBlock":
            found = [(gate["_act_scalar"], gate["_scalar_cst"]), (gate["_act_gate"], gate["_gate_cst"])]
        else:  # e3nn's, in files of versions before 0.3.16
            acts = [gate["act_scalars.acts.0"], gate["act_gates.acts.0"]]
            for act in acts:
                check_attribute(act, "_is_id", expected=False)
            found = [(act["f"], act["cst"]) for act in acts]
        for (function, constant), expected in zip(found, ("silu", "sigmoid"), strict=True):
            if not isinstance(function, Record | Named) or function.name != expected:
                raise InputError(
                    f"has a {place} with {plain(function)}", hint=f"only {expected} is known there"
                )
            check_activation(function, constant, place)
        check_attribute(record[f"products.{n}"], "use_agnostic_product", expected=True)
