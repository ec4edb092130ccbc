"""A potential from a model file of ``mace-torch``: its options read, what is not supported refused."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pimlip_zoo.errors import InputError, did_you_mean
from pimlip_zoo.foundation.mace_torch.layout import check_layout
from pimlip_zoo.foundation.mace_torch.nonlinear import NONLINEAR, import_nonlinear, is_nonlinear
from pimlip_zoo.foundation.mace_torch.options import (
    activation_name,
    check_attribute,
    check_radii,
    common_options,
    heads_of,
)
from pimlip_zoo.foundation.mace_torch.parts import check_parts
from pimlip_zoo.foundation.mace_torch.paths import check_paths
from pimlip_zoo.foundation.mace_torch.sizes import check_sizes
from pimlip_zoo.foundation.mace_torch.weights import convert_weights
from pimlip_zoo.foundation.objects import check_finite, laid_out_as, read_objects, state_of
from pimlip_zoo.foundation.unpickle import Record
from pimlip_zoo.models.mace import MACE, MACEConfig
from pimlip_zoo.models.mace_nonlinear import MACENonlinear
from pimlip_zoo.models.potential import Potential
from pimlip_zoo.nn.zbl import ZBL

_INTERACTIONS = {
    "RealAgnosticInteractionBlock": ("neighbors", False),
    "RealAgnosticResidualInteractionBlock": ("neighbors", True),
    "RealAgnosticDensityInteractionBlock": ("density", False),
    "RealAgnosticDensityResidualInteractionBlock": ("density", True),
}
"""How an interaction block divides its sums, and whether it passes the features on beside them."""

_FIXED = {"use_so3": False, "keep_last_layer_irreps": False, "lora_rank": None}
"""Attributes of any model that have to have this value, or to be absent."""

_PLAIN = {
    "use_agnostic_product": False,
    "use_last_readout_only": False,
    "edge_irreps": None,
    "apply_cutoff": True,
    "embedding_readout": None,
}
"""The same of models without nonlinear interactions."""


def import_potential(file: str | Path, *, head: str | None = None) -> Potential:
    """The potential that a ``ScaleShiftMACE`` stands for, in the precision of its weights.

    Energies, forces and stress are those of the original. A pair repulsion becomes :class:`ZBL`; what all atoms are
    shifted by becomes part of the energy references.

    Args:
        file: a ``.model`` file of ``mace-torch`` (0.3.x).
        head: which head of a model with several.

    Raises:
        InputError: when the file cannot be read, or holds a variant that is not supported.
    """
    file = Path(file)
    record = read_records(file)
    if record.name != "ScaleShiftMACE":
        raise InputError(f"holds a {record.name}", file=file, hint="only ScaleShiftMACE can be converted")
    with laid_out_as("mace-torch 0.3", file):
        _check_options(record)
        return _potential(record, head)


def read_records(path: Path) -> Record:
    """The object that a file holds.

    Raises:
        InputError: when there is no such file or it is something else.
    """
    content = read_objects(path)
    if not isinstance(content, Record):
        raise InputError(
            f"holds a {type(content).__name__}, not a model",
            file=path,
            hint="give the .model file of mace-torch",
        )
    return content


def _check_options(record: Record) -> None:
    expected: dict[str, Any] = _FIXED
    if not is_nonlinear(record):
        embedding = record["joint_embedding"]
        if isinstance(embedding, Record):
            specs = embedding["specs"]
            names = " and ".join(map(str, specs)) if isinstance(specs, dict) else "more"
            raise InputError(
                f"embeds {names[:80]} of a structure beside its species, without the layers of MACE-OMOL",
                hint="only models of positions and species can be converted, and those with MACE-OMOL's layers",
            )
        expected = _FIXED | _PLAIN
    for name, value in expected.items():
        check_attribute(record, name, value)


def _potential(record: Record, head: str | None) -> Potential:
    from ase.data import chemical_symbols

    weights = state_of(record)
    check_finite(weights)
    numbers = [int(number) for number in weights["atomic_numbers"]]
    if not all(0 < number < len(chemical_symbols) for number in numbers) or len(set(numbers)) < len(numbers):
        raise InputError(f"is for the atomic numbers {reprlib.repr(numbers)}, which cannot be")
    species = [chemical_symbols[number] for number in numbers]
    index = _head(heads_of(record), head)
    scale, shift = (_of_head(weights[f"scale_shift.{name}"], index) for name in ("scale", "shift"))
    model: MACE | MACENonlinear
    if is_nonlinear(record):
        model = import_nonlinear(record, weights, species, head=index, scale=float(scale))
    else:
        config = _config(record, weights, species)
        check_sizes(config, weights, len(species))
        check_layout(record, config)
        model = MACE(config, species).to(torch.float64)
        model.load_state_dict(convert_weights(model, weights, head=index))
    check_parts(record, weights)
    check_paths(record, model)
    energies = weights["atomic_energies_fn.atomic_energies"].to(torch.float64)
    energies = energies.reshape(-1, len(species))
    references = energies[min(index, len(energies) - 1)] + shift
    repulsion = None
    if isinstance(record["pair_repulsion_fn"], Record):
        _check_zbl(weights, species)
        # The package multiplies the repulsion with the scale of everything else.
        repulsion = ZBL(species, cutoff_order=float(weights["pair_repulsion_fn.p"]), strength=float(scale))
    potential = Potential(model, energy_references=references, scale=scale, repulsion=repulsion)
    return potential.set_dtype(weights["node_embedding.linear.weight"].dtype).eval()


def _config(record: Record, weights: dict[str, Tensor], species: Sequence[str]) -> MACEConfig:
    layers = [layer.name for layer in record["interactions"]]
    for name in layers:
        if name not in _INTERACTIONS:
            supported = ", ".join((*_INTERACTIONS, NONLINEAR))
            raise InputError(f"has a {name}", hint=f"supported are {supported}")
    kinds = [_INTERACTIONS[name] for name in layers]
    if len({kind for kind, _ in kinds}) > 1 or not all(residual for _, residual in kinds[1:]):
        raise InputError(f"has the layers {', '.join(layers)}, a mixture that is not supported")
    radial = "interactions.0.conv_tp_weights.layer"
    widths = [
        int(weights[f"{radial}{n}.weight"].shape[0])
        for n in range(len(record["interactions.0.conv_tp_weights"]))
    ]
    _check_radial(record)
    return MACEConfig(
        **common_options(record, weights, species),
        radial_hidden=tuple(widths[1:]),
        num_bessel=widths[0],
        normalization="density" if kinds[0][0] == "density" else "neighbors",
        residual_first=kinds[0][1],
        readout_hidden=_readout_hidden(record, weights),
    )


def _head(heads: Sequence[str], wanted: str | None) -> int:
    if wanted is None and len(heads) == 1:
        return 0
    if wanted is None:
        raise InputError(f"has the heads {', '.join(heads)}", key="head", hint="choose one with --head")
    if wanted not in heads:
        raise InputError(f"has no head {wanted!r}", key="head", hint=did_you_mean(wanted, heads))
    return list(heads).index(wanted)


def _of_head(value: Tensor, index: int) -> Tensor:
    values = value.to(torch.float64).reshape(-1)
    return values[min(index, len(values) - 1)]


def _check_zbl(weights: dict[str, Tensor], species: Sequence[str]) -> None:
    given = torch.cat(
        [
            weights[f"pair_repulsion_fn.{x}"].to(torch.float64).reshape(-1)
            for x in ("c", "a_exp", "a_prefactor")
        ]
    )
    usual = torch.tensor([0.1818, 0.5099, 0.2802, 0.02817, 0.300, 0.4543], dtype=torch.float64)
    if not torch.allclose(given, usual, rtol=1e-6, atol=0):
        raise InputError(f"has a pair repulsion with the constants {given.tolist()}, which is not supported")
    check_radii(weights["pair_repulsion_fn.covalent_radii"], weights["atomic_numbers"], species)


def _readout_hidden(record: Record, weights: dict[str, Tensor]) -> tuple[int, ...]:
    last = len(record["readouts"]) - 1
    kinds = [readout.name for readout in record["readouts"]]
    if last + 1 != len(record["interactions"]) or set(kinds[:-1]) - {"LinearReadoutBlock"}:
        raise InputError(f"has the readouts {', '.join(kinds)}, which are not supported")
    if kinds[-1] == "LinearReadoutBlock":
        return ()
    if kinds[-1] != "NonLinearReadoutBlock":
        raise InputError(
            f"has the readout {kinds[-1]}", hint="supported are Linear- and NonLinearReadoutBlock"
        )
    hidden = weights[f"readouts.{last}.linear_1.output_mask"].numel()
    return (hidden // len(heads_of(record)),)


def _check_radial(record: Record) -> None:
    """The package has no option for it; somebody may have changed it all the same."""
    for layer in record["interactions"]:
        for linear in list(layer["conv_tp_weights"])[:-1]:
            if (name := activation_name(linear["act"], "radial MLP")) != "silu":
                raise InputError(
                    f"has a radial MLP with the activation {name}", hint="only silu is supported"
                )
