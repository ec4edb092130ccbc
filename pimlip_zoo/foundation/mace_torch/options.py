"""What a record of ``mace-torch`` says of its options; values that are not supported are refused by name."""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pimlip_zoo.errors import InputError
from pimlip_zoo.foundation.objects import state_of
from pimlip_zoo.foundation.unpickle import Named, Record
from pimlip_zoo.nn.elements import covalent_radii
from pimlip_zoo.nn.mlp import ACTIVATIONS, ScaledActivation

_TORCH = re.compile(
    r"torch\.(?:nn\.functional\.|nn\.modules\.activation\.|_C\._VariableFunctions(?:Class)?\.|_C\._nn\.)?\w+"
)
"""Names of torch's functions as its versions save them."""


def heads_of(record: Record) -> list[str]:
    """Names of the levels of theory that a file holds."""
    heads = record["heads"]
    if heads is None:
        return ["Default"]
    if not isinstance(heads, list | tuple) or not heads or not all(isinstance(name, str) for name in heads):
        raise InputError(f"has the heads {plain(heads)}, which are no names")
    return list(heads)


def check_attribute(record: Record, name: str, expected: Any) -> None:
    """Refuse another value than the expected one; an attribute may be absent."""
    value = record[name]
    if value is not None and (isinstance(value, Tensor) or value != expected):
        raise InputError(f"was built with {name} = {plain(value)}, which is not supported")


def same(name: str, values: Sequence[Any]) -> Any:
    """What all layers have; options that differ between layers are not supported."""
    if any(value != values[0] for value in values[1:]):
        raise InputError(f"has a {name} that differs between layers: {', '.join(map(str, values))}")
    return values[0]


def common_options(record: Record, weights: Mapping[str, Tensor], species: Sequence[str]) -> dict[str, Any]:
    """The options that models with and without nonlinear interactions have in common."""
    layers, contractions = record["interactions"], "products.0.symmetric_contractions.contractions"
    cutoff = float(weights["r_max"])
    return {
        "cutoff": cutoff,
        "avg_num_neighbors": same("avg_num_neighbors", [float(x["avg_num_neighbors"]) for x in layers]),
        "num_interactions": len(layers),
        "l_max": math.isqrt(weights[f"{contractions}.0.U_matrix_1"].shape[0]) - 1,
        "hidden_l_max": len(record[contractions]) - 1 if len(layers) > 1 else 0,
        "channels": weights["node_embedding.linear.weight"].numel() // len(species),
        "correlation": same("correlation", [_correlation(product) for product in record["products"]]),
        "bessel_trainable": _bessel_moved(record["radial_embedding"], weights, cutoff),
        "cutoff_order": float(weights["radial_embedding.cutoff_fn.p"]),
        "distance_transform": _transform(record["radial_embedding"], weights, species),
        "readout_gate": _readout_gate(record),
    }


def _correlation(product: Record) -> int:
    """Number of neighbours that a product couples."""
    return 1 + sum(
        name.startswith("weights.") for name in state_of(product["symmetric_contractions.contractions.0"])
    )


def _bessel_moved(embedding: Record, weights: Mapping[str, Tensor], cutoff: float) -> bool:
    """Whether the frequencies of the basis are others than those it began with."""
    if embedding["bessel_fn"].name != "BesselBasis":
        raise InputError(
            f"has the radial functions {embedding['bessel_fn'].name}", hint="only BesselBasis is known"
        )
    given = (
        weights["radial_embedding.bessel_fn.bessel_weights"].to(torch.float64).reshape(-1) * cutoff / math.pi
    )
    return not torch.allclose(
        given, torch.arange(1.0, len(given) + 1, dtype=torch.float64), rtol=1e-5, atol=0
    )


def _transform(embedding: Record, weights: Mapping[str, Tensor], species: Sequence[str]) -> str:
    """Which transform of distances a radial embedding has."""
    transform = embedding["distance_transform"]
    if transform is None:
        return "none"
    prefix = "radial_embedding.distance_transform."
    agnesi = transform.name == "AgnesiTransform"
    constants = [float(weights[prefix + name]) for name in ("q", "p", "a")] if agnesi else []
    known = all(abs(x - y) < 1e-6 for x, y in zip(constants, (0.9183, 4.5791, 1.0805), strict=False))
    if not agnesi or not known:
        raise InputError(f"transforms distances by {transform.name} {constants}, which is not supported")
    check_radii(weights[f"{prefix}covalent_radii"], weights["atomic_numbers"], species)
    return "agnesi"


def check_radii(radii: Tensor, numbers: Tensor, species: Sequence[str]) -> None:
    """Refuse other covalent radii than those that this package has."""
    if not torch.allclose(radii[numbers].to(torch.float64), covalent_radii(species), rtol=1e-6, atol=0):
        raise InputError("has other covalent radii than ase.data")


def _readout_gate(record: Record) -> str:
    """Activation of the last readout."""
    last = list(record["readouts"])[-1]
    if last.name == "LinearReadoutBlock":
        return "silu"
    return activation_name(last["non_linearity.acts.0"], "readout")


def activation_name(act: Any, place: str) -> str:
    """The name of an activation that is divided by its second moment; e3nn leaves out both where there is none."""
    if act is None:
        return "identity"
    name = check_activation(act["f"], act["cst"], place)
    if act["_is_id"] is True and abs(float(act["cst"]) - 1.0) > 1e-4:
        raise InputError(f"has a {place} whose activation {name} is not multiplied by {float(act['cst']):g}")
    return name


def check_activation(function: Any, constant: Any, place: str) -> str:
    """The name of an activation, whose recorded constant has to be ours."""
    name = function.name if isinstance(function, Named | Record) else plain(function)
    if isinstance(function, Named | Record) and not _TORCH.fullmatch(function.qualified_name):
        raise InputError(
            f"has a {place} with the activation {function.qualified_name[:120]}",
            hint="only torch's are known",
        )
    if name not in ACTIVATIONS:
        raise InputError(f"has a {place} with the activation {name}", hint=f"known: {', '.join(ACTIVATIONS)}")
    ours = ScaledActivation(name).constant
    if abs(float(constant) - ours) > 1e-4:  # e3nn's, from random numbers in single precision, agree to 1e-6
        raise InputError(
            f"has a {place} whose activation {name} is multiplied by {float(constant):g}, and here by {ours:g}"
        )
    return name


def plain(value: Any) -> str:
    """A recorded value in a few letters."""
    return value.name if isinstance(value, Record | Named) else reprlib.repr(value)
