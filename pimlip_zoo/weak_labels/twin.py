"""A second level of theory on the features of a potential: readouts of its own, everything else shared."""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import cast

from torch import nn

from pimlip_zoo.errors import InputError


def readout_names(potential: nn.Module) -> tuple[str, ...]:
    """The parameters of a potential that turn features into energies and forces, as the architecture says.

    Args:
        potential: whose ``model`` has :attr:`~pimlip_zoo.models.base.AtomicEnergyModel.readout_modules`.

    Raises:
        InputError: when the architecture does not say what its readouts are.
    """
    model = cast("nn.Module", potential.model)
    prefixes = tuple(f"model.{name}." for name in cast("tuple[str, ...]", model.readout_modules))
    names = tuple(name for name, _ in potential.named_parameters() if prefixes and name.startswith(prefixes))
    if not names:
        raise InputError(
            f"{type(model).__name__} does not say which of its modules are readouts",
            key="weak.labels.method",
            hint="set readout_modules in the architecture, or choose another recipe",
        )
    return names


def twin_of(potential: nn.Module, own: Collection[str]) -> nn.Module:
    """A copy that shares every parameter with the potential but those named, which start as the potential's.

    Args:
        potential: the one that is trained.
        own: names of parameters.
    """
    twin = copy.deepcopy(potential)
    for name, parameter in potential.named_parameters():
        if name not in own:
            parent, _, leaf = name.rpartition(".")
            twin.get_submodule(parent).register_parameter(leaf, parameter)
    return twin
