"""Whether a recorded model is as large as its weights say, before a model of that size is built."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise

from torch import Tensor

from pimlip_zoo.errors import InputError
from pimlip_zoo.models.mace import MACEConfig
from pimlip_zoo.models.mace_nonlinear import MACENonlinearConfig

_MOST_LAYERS, _LARGEST_L = 32, 8
_HIGHEST_ORDER = 6


def check_sizes(config: MACEConfig, weights: Mapping[str, Tensor], num_species: int) -> None:
    """A few numbers of a small file can ask for a model that fills the memory; each has to have its weights.

    Raises:
        InputError: when the weights of the file are not those of a model with these options.
    """
    check_most(config, weights)
    channels, widths = config.channels, (config.num_bessel, *config.radial_hidden)
    check_count("node_embedding.linear.weight", weights, num_species * channels)
    check_count("interactions.0.linear_up.weight", weights, channels**2)
    for layer in range(config.num_interactions):
        for n, (width, following) in enumerate(pairwise(widths)):
            check_count(f"interactions.{layer}.conv_tp_weights.layer{n}.weight", weights, width * following)
    if config.readout_hidden:
        name = f"readouts.{config.num_interactions - 1}.linear_1.weight"
        if weights[name].numel() % (channels * math.prod(config.readout_hidden)):
            raise InputError(f"{name} has {weights[name].numel()} weights for {channels} channels")


def check_most(config: MACEConfig | MACENonlinearConfig, weights: Mapping[str, Tensor]) -> None:
    """Degrees, layers and orders that a computer can hold, and tables of couplings of these degrees.

    Raises:
        InputError: naming what is too large, or does not fit.
    """
    for name, value, most in (
        ("num_interactions", config.num_interactions, _MOST_LAYERS),
        ("l_max", config.l_max, _LARGEST_L),
        ("hidden_l_max", config.hidden_l_max, _LARGEST_L),
        ("correlation", config.correlation, _HIGHEST_ORDER),
    ):
        if value > most:
            raise InputError(f"has {name} = {value}", hint=f"at most {most} can be converted")
    components = (config.l_max + 1) ** 2
    for layer in range(config.num_interactions):
        for order in range(1, config.correlation + 1):
            name = f"products.{layer}.symmetric_contractions.contractions.0.U_matrix_{order}"
            if weights[name].shape[:-1] != (components,) * order:
                raise InputError(
                    f"{name} has the shape {tuple(weights[name].shape)}, and l_max is {config.l_max}"
                )


def check_count(name: str, weights: Mapping[str, Tensor], count: int) -> None:
    """Refuse a file whose weights of that name are not so many.

    Raises:
        InputError: with both numbers.
    """
    if weights[name].numel() != count or count == 0:
        raise InputError(f"{name} has {weights[name].numel()} weights where the file's options need {count}")
