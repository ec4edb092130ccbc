"""Options of ``nequip``'s and ``nequip-allegro``'s builders as options of this package's architectures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pimlip_zoo.errors import InputError
from pimlip_zoo.models.allegro import AllegroConfig
from pimlip_zoo.models.nequip import NequIPConfig

BUILDERS = ("nequip.model.NequIPGNNModel", "allegro.model.AllegroModel")
"""The builders whose models can be converted, by the names that configurations have for them."""

_ELSEWHERE = frozenset(
    {
        "_target_",
        "_convert_",
        "_recursive_",
        "seed",
        "model_dtype",
        "compile_mode",
        "type_names",
        "do_derivatives",
    }
    | {"per_type_energy_scales", "per_type_energy_shifts"}
    | {"per_type_energy_scales_trainable", "per_type_energy_shifts_trainable"}
)
"""Options that say nothing of what is computed, or what the weights say."""

_FIXED: dict[str, Any] = {
    "pair_potential": None,
    "categorical_graph_field_embed": None,
    "learnable_shift": False,
    "convnet_resnet": False,
    "convnet_nonlinearity_type": "gate",
    "convnet_nonlinearity_scalars": {"e": "silu", "o": "tanh"},
    "convnet_nonlinearity_gates": {"e": "silu", "o": "tanh"},
    "weight_individual_irreps": True,
    "forward_normalize": True,
}
"""Options that have to have this value, or to be absent."""


def configure(options: Mapping[str, Any], species: Sequence[str]) -> NequIPConfig | AllegroConfig:
    """The architecture and its options.

    Args:
        options: as the builder got them, with the builder's name as ``_target_``.
        species: chemical symbols of its types.

    Raises:
        InputError: for another builder, or an option that is not supported; the message names it.
    """
    builder = options.get("_target_")
    if builder not in BUILDERS:
        raise InputError(
            f"its model was made by {str(builder)[:80]}",
            hint=f"those of {' and '.join(BUILDERS)} can be read",
        )
    reader = _Reader(options)
    config = _nequip(reader, species) if builder == BUILDERS[0] else _allegro(reader, species)
    reader.finish()
    return config


class _Reader:
    """Options, of which each has to be looked at."""

    def __init__(self, options: Mapping[str, Any], prefix: str = "") -> None:
        self.options, self.prefix = options, prefix
        self.seen: set[str] = set()

    def get(self, name: str, default: Any, kind: type | tuple[type, ...]) -> Any:
        self.seen.add(name)
        value = self.options.get(name, default)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise self.refusal(name)
        return value

    def hidden(self, prefix: str, depth: int, width: int) -> tuple[int, ...]:
        """Widths of the hidden layers of an MLP, whose activation has to be silu."""
        layers = self.get(f"{prefix}hidden_layers_depth", depth, int)
        widths = (self.get(f"{prefix}hidden_layers_width", width, (int, type(None))) or width,) * layers
        if self.get(f"{prefix}nonlinearity", "silu", (str, type(None))) != "silu" and layers:
            raise self.refusal(f"{prefix}nonlinearity")
        return widths

    def refusal(self, name: str) -> InputError:
        value = repr(self.options.get(name))[:80]
        return InputError(f"was built with {self.prefix}{name} = {value}, which is not supported")

    def finish(self) -> None:
        for name, value in self.options.items():
            if name in self.seen or name in _ELSEWHERE:
                continue
            if name not in _FIXED or value != _FIXED[name]:
                raise self.refusal(name)


def _nequip(reader: _Reader, species: Sequence[str]) -> NequIPConfig:
    l_max = reader.get("l_max", 1, int)
    channels = reader.get("num_features", 32, (int, list))
    if isinstance(channels, list):
        if len(set(map(repr, channels))) != 1 or len(channels) != l_max + 1 or type(channels[0]) is not int:
            raise reader.refusal("num_features")
        channels = channels[0]
    if reader.get("type_embed_num_features", None, (int, type(None))) not in (None, channels):
        raise reader.refusal("type_embed_num_features")
    return NequIPConfig(
        **_common(reader, reader, species),
        num_layers=reader.get("num_layers", 4, int),
        l_max=l_max,
        parity=reader.get("parity", True, bool),
        channels=channels,
        radial_hidden=(reader.get("radial_mlp_width", 128, int),) * reader.get("radial_mlp_depth", 1, int),
        self_connection=reader.get("convnet_sc", True, bool),
        readout_hidden=reader.hidden("readout_mlp_", 0, channels),
    )


def _allegro(reader: _Reader, species: Sequence[str]) -> AllegroConfig:
    embedding = reader.get("radial_chemical_embed", None, dict)
    radial = _Reader(embedding, "radial_chemical_embed.")
    if embedding.get("_target_") != "allegro.nn.TwoBodyBesselScalarEmbed":
        raise radial.refusal("_target_")
    config = AllegroConfig(
        **_common(reader, radial, species),
        num_layers=reader.get("num_layers", 2, int),
        l_max=reader.get("l_max", None, int),
        parity=reader.get("parity", True, bool),
        scalar_channels=reader.get("num_scalar_features", 64, int),
        tensor_channels=reader.get("num_tensor_features", 16, int),
        embed_channels=reader.get("radial_chemical_embed_dim", None, (int, type(None))),
        embed_hidden=reader.hidden("scalar_embed_mlp_", 1, 64),
        latent_hidden=reader.hidden("allegro_mlp_", 1, 64),
        readout_hidden=reader.hidden("readout_mlp_", 1, 32),
        path_channels=reader.get("tp_path_channel_coupling", True, bool),
    )
    radial.finish()
    return config


def _common(reader: _Reader, radial: _Reader, species: Sequence[str]) -> dict[str, Any]:
    return {
        "cutoff": float(reader.get("r_max", None, (int, float))),
        "avg_num_neighbors": float(reader.get("avg_num_neighbors", None, (int, float))),
        "num_bessel": radial.get("num_bessels", 8, int),
        "bessel_trainable": radial.get("bessel_trainable", False, bool),
        "cutoff_order": float(radial.get("polynomial_cutoff_p", 6, (int, float))),
        "species_cutoffs": _pair_cutoffs(reader, species),
    }


def _pair_cutoffs(reader: _Reader, species: Sequence[str]) -> tuple[tuple[str, str, float], ...]:
    """(centre, neighbour, Å); the package has them as nested dictionaries, a number for all neighbours of a type."""
    pairs = []
    for centre, entry in (reader.get("per_edge_type_cutoff", None, (dict, type(None))) or {}).items():
        by_neighbour = entry if isinstance(entry, dict) else dict.fromkeys(species, entry)
        for neighbour, value in by_neighbour.items():
            if type(value) not in (int, float) or {centre, neighbour} - set(species):
                raise reader.refusal("per_edge_type_cutoff")
            pairs.append((centre, neighbour, float(value)))
    return tuple(pairs)
