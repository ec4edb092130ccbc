"""A potential from a checkpoint of ``sevenn``, the SevenNet models, which need not be installed."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pimlip_zoo.errors import InputError, did_you_mean
from pimlip_zoo.foundation.objects import check_finite, laid_out_as, read_objects, tensors_of
from pimlip_zoo.foundation.sevennet.layout import Layout, read_layout
from pimlip_zoo.foundation.sevennet.weights import convert_weights, current_names
from pimlip_zoo.models.extent import check_extent
from pimlip_zoo.models.nequip import NequIP, NequIPConfig
from pimlip_zoo.models.potential import Potential

NEWEST = (0, 13)
"""Of that package: its layout is known up to this version."""

_EXPECTED: dict[str, tuple[Any, Any]] = {
    "_model_type": ("E3_equivariant_model", None),
    "interaction_type": ("nequip", "nequip"),
    "act_radial": ("silu", "silu"),
    "act_scalar": ({"e": "silu", "o": "tanh"}, {"e": "silu", "o": "tanh"}),
    "act_gate": ({"e": "silu", "o": "tanh"}, {"e": "silu", "o": "tanh"}),
    "readout_as_fcn": (False, False),
    "optimize_by_reduce": (True, True),
}
"""Options with the one value that can be converted, and what stands for it where a file is silent."""


def import_potential(
    file: str | Path, *, level: str | None = None, dtype: torch.dtype | None = None
) -> Potential:
    """The potential that a checkpoint of ``sevenn`` stands for.

    Energies, forces and stress are those of the original. Its shift becomes the energy references. The frequencies of
    the radial functions, which that package trains, stay as they are.

    Args:
        file: a checkpoint (``.pth``), read as data.
        level: which level of theory (modality) of a model with several.
        dtype: of the weights; the file's if not given. Its weights are rounded once only with float64.

    Raises:
        InputError: when the file cannot be read, or holds something that cannot be converted.
    """
    file = Path(file)
    content = read_objects(file)
    with laid_out_as("sevenn", file):
        return _potential(content, level, dtype)


def _potential(content: object, level: str | None, dtype: torch.dtype | None) -> Potential:
    if not isinstance(content, dict) or not {"config", "model_state_dict"} <= content.keys():
        kind = f"a {content.name}" if hasattr(content, "name") else f"a {type(content).__name__}"
        raise InputError(
            f"holds {kind}, not a checkpoint of sevenn",
            hint="give the .pth file that sevenn trained or published",
        )
    config, state = content["config"], content["model_state_dict"]
    if not isinstance(config, dict) or not isinstance(state, dict):
        raise InputError(
            "has no options or no weights", hint="give the .pth file that sevenn trained or published"
        )
    version = _version(config)
    _check_options(config)
    weights = tensors_of(state)
    check_finite(weights)
    theirs = current_names(weights)
    levels = _levels(config)
    number = _level(levels, level)
    layout = read_layout(config, _species(config), levels)
    options = _options(config, layout, theirs)
    _check_sizes(layout, theirs, options)
    check_extent(NequIP, options, layout.species, theirs.values())
    model = NequIP(options, layout.species).to(torch.float64)
    _check_irreps(model, layout)
    converted = convert_weights(model, layout, theirs, level=number, paths_sorted=version >= (0, 11))
    model.load_state_dict(converted.weights)
    scale, shift = (_by_species(config, theirs, name, layout, number) for name in ("scale", "shift"))
    potential = Potential(
        model,
        energy_references=shift + scale * converted.constant,
        scale=scale if bool((scale != scale[0]).any()) else scale[0],
    )
    return potential.set_dtype(dtype or theirs["onehot_to_feature_x.linear.weight"].dtype).eval()


def _version(config: Mapping[str, Any]) -> tuple[int, int]:
    text = str(config.get("version", ""))
    parts = text.split(".")
    if len(parts) < 2 or not all(part.isdigit() for part in parts[:2]):
        raise InputError(f"has no version of sevenn in its options, but {text[:20]!r}")
    version = int(parts[0]), int(parts[1])
    if version > NEWEST:
        raise InputError(
            f"was written by sevenn {text[:20]}, and versions up to {NEWEST[0]}.{NEWEST[1]} are known",
            hint="update pimlip-zoo, or write the checkpoint with an earlier version",
        )
    if version == (0, 11) and "dev" in text:
        version = (0, 10)
    return version


def _check_options(config: Mapping[str, Any]) -> None:
    for name, (expected, default) in _EXPECTED.items():
        value = config.get(name, default)
        if value != expected:
            raise InputError(
                f"was built with {name} = {reprlib.repr(value)}", hint=f"only {expected!r} can be converted"
            )


def _species(config: Mapping[str, Any]) -> tuple[str, ...]:
    from ase.data import chemical_symbols

    numbers = config.get("_type_map")
    if not isinstance(numbers, dict) or sorted(numbers.values()) != list(range(len(numbers))) or not numbers:
        raise InputError("has no _type_map from atomic numbers to rows of weights")
    ordered = sorted(numbers, key=lambda number: numbers[number])
    if not all(isinstance(z, int) and 0 < z < len(chemical_symbols) for z in ordered):
        raise InputError(f"is for the atomic numbers {reprlib.repr(ordered)}, which cannot be")
    return tuple(chemical_symbols[z] for z in ordered)


def _levels(config: Mapping[str, Any]) -> tuple[str, ...]:
    if not config.get("use_modality", False):
        return ()
    numbers = config.get("_modal_map")
    if not isinstance(numbers, dict) or sorted(numbers.values()) != list(range(len(numbers))) or not numbers:
        raise InputError("has levels of theory without names")
    return tuple(str(name) for name in sorted(numbers, key=lambda name: numbers[name]))


def _level(levels: tuple[str, ...], wanted: str | None) -> int | None:
    if not levels:
        if wanted is not None:
            raise InputError("has a single level of theory", key="level", hint="leave out --level")
        return None
    if wanted is None:
        if len(levels) == 1:
            return 0
        raise InputError(f"has the levels {', '.join(levels)}", key="level", hint="choose one with --level")
    by_name = {name.lower(): number for number, name in enumerate(levels)}
    if wanted.lower() not in by_name:
        raise InputError(f"has no level {wanted!r}", key="level", hint=did_you_mean(wanted, levels))
    return by_name[wanted.lower()]


def _options(config: Mapping[str, Any], layout: Layout, theirs: Mapping[str, Tensor]) -> NequIPConfig:
    cutoff = float(config["cutoff"])
    envelope = config["cutoff_function"]
    name = envelope["cutoff_function_name"]
    if name not in ("poly_cut", "XPLOR"):
        raise InputError(f"has the cutoff {reprlib.repr(name)}", hint="known: poly_cut, XPLOR")
    if config["radial_basis"]["radial_basis_name"] != "bessel":
        raise InputError(
            f"has the radial functions {reprlib.repr(config['radial_basis'])}", hint="known: bessel"
        )
    hidden = [
        int(theirs[f"0_convolution.weight_nn.layer{n}.weight"].shape[0])
        for n in range(len(config["weight_nn_hidden_neurons"]) + 1)
    ]
    frequencies = theirs["edge_embedding.basis_function.coeffs"].to(torch.float64) * cutoff / math.pi
    if frequencies.numel() != hidden[0]:
        raise InputError(f"has {frequencies.numel()} frequencies of {hidden[0]} radial functions")
    kinds = config.get("self_connection_type", "nequip")
    kinds = [kinds] * len(layout.layers) if isinstance(kinds, str) else list(kinds)
    if len(set(kinds)) > 1 or kinds[0] not in ("nequip", "linear", "none"):
        raise InputError(
            f"has the self-connections {reprlib.repr(kinds)}", hint="known: nequip or linear, in all layers"
        )
    channels = _channels(layout)
    norms = tuple(
        float(theirs[f"{n}_convolution.denominator"].to(torch.float64).item())
        for n in range(len(layout.layers))
    )
    return NequIPConfig(
        cutoff=cutoff,
        avg_num_neighbors=norms[0] ** 2,
        num_layers=len(layout.layers),
        l_max=layout.l_max,
        parity=layout.reflections,
        reflections=layout.reflections,
        channels=channels[0] if len(set(channels)) == 1 else NequIPConfig.channels,
        channels_by_degree=() if len(set(channels)) == 1 else channels,
        radial_hidden=tuple(hidden[1:]),
        radial_normalized=True,
        num_bessel=hidden[0],
        bessel_frequencies=tuple(frequencies.reshape(-1).tolist()),
        cutoff_function="xplor" if name == "XPLOR" else "polynomial",
        cutoff_order=float(envelope.get("poly_cut_p_value", 6)) if name == "poly_cut" else 6.0,
        cutoff_onset=float(envelope["cutoff_on"]) / cutoff if name == "XPLOR" else 0.9,
        solid_harmonics=not config.get("_normalize_sph", False),
        self_connection=kinds[0] != "none",
        self_connection_weights="shared" if kinds[0] == "linear" else "element",
        self_connection_first=kinds[0] != "none",
        scalar_bias=_adds_to_scalars(config),
        neighbor_norms=norms,
    )


def _adds_to_scalars(config: Mapping[str, Any]) -> bool:
    names = ("use_modal_self_inter_intro", "use_modal_self_inter_outro")
    by_level = bool(config.get("use_modality")) and any(config.get(name) for name in names)
    return bool(config.get("use_bias_in_linear", False)) or by_level


def _channels(layout: Layout) -> tuple[int, ...]:
    """By degree, from the widest layer of each."""
    found = [layout.scalars] + [0] * layout.l_max
    for layer in layout.layers[:-1]:
        for n, irrep in layer.irreps_out:
            if irrep.l <= layout.l_max:
                found[irrep.l] = max(found[irrep.l], int(n))
    return tuple(n or layout.scalars for n in found)


def _check_sizes(layout: Layout, theirs: Mapping[str, Tensor], options: NequIPConfig) -> None:
    """A small file cannot ask for a large model: the weights of each layer have to be there."""
    for index, layer in enumerate(layout.layers):
        name = f"{index}_self_interaction_1.linear.weight"
        needed = sum(int(n) ** 2 for n, _ in layer.irreps_in)
        if theirs[name].numel() < needed:
            raise InputError(f"{name} has {theirs[name].numel()} weights where its options need {needed}")
        widths = (options.num_bessel, *options.radial_hidden)
        for number, width in enumerate(widths):
            name = f"{index}_convolution.weight_nn.layer{number}.weight"
            if theirs[name].shape[0] != width:
                raise InputError(f"{name} has {theirs[name].shape[0]} rows, expected {width}")


def _check_irreps(model: NequIP, layout: Layout) -> None:
    for index, (layer, its) in enumerate(zip(model.layers, layout.layers, strict=True)):
        ours = {irrep: int(n) * model.config.inner for n, irrep in layer.irreps_out}  # type: ignore[attr-defined, union-attr]
        wanted = {irrep: int(n) for n, irrep in its.irreps_out}
        if ours != wanted:
            raise InputError(
                f"layer {index} makes the features {its.irreps_out}",
                hint="channels of a degree have to be the same in all layers",
            )


def _by_species(
    config: Mapping[str, Any], theirs: Mapping[str, Tensor], name: str, layout: Layout, level: int | None
) -> Tensor:
    """One number for each element; the package keeps one for all only where neither is a list in its options."""
    count = len(layout.species)
    given: list[Any] = [config.get("scale"), config.get("shift")]
    listed = level is not None or any(hasattr(each, "__len__") and len(each) > 1 for each in given)
    value = theirs[f"rescale_atomic_energy.{name}"].to(torch.float64)
    if value.dim() == 2 and level is not None:
        value = value[level]
    value = value.reshape(-1)
    if value.numel() != count and (listed or value.numel() != 1):
        raise InputError(f"has a {name} of energies for {value.numel()} elements, and {count} elements")
    return value.expand(count).clone()
