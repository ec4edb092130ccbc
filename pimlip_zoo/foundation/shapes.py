"""Weights of other packages in the shapes that this one has."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from e3nn import o3
from torch import Tensor, nn

from pimlip_zoo.errors import InputError
from pimlip_zoo.nn.linear import EquivariantLinear, SpeciesLinear

Weights = Mapping[str, Tensor]


def blocks_of(
    name: str, linear: EquivariantLinear | SpeciesLinear, theirs: Weights, their_name: str
) -> dict[str, Tensor]:
    """e3nn keeps one vector, blocks in the order of the input's irreps; ours go by the output's.

    Raises:
        InputError: when it has another number of weights.
    """
    flat = theirs[f"{their_name}.weight"]
    irreps_in, irreps_out = o3.Irreps(linear.irreps_in), o3.Irreps(linear.irreps_out)
    matching = [irrep for _, irrep in irreps_out if irrep in irreps_in]
    shapes = dict(zip(matching, (weight.shape for weight in linear.weights), strict=True))
    expected = sum(shape.numel() for shape in shapes.values())
    if flat.numel() != expected:
        raise InputError(f"{their_name} has {flat.numel()} weights in the file, and {expected} here")
    order = [irrep for _, irrep in irreps_in if irrep in shapes]
    parts = flat.reshape(-1).split([shapes[irrep].numel() for irrep in order])
    found = {irrep: part.reshape(shapes[irrep]) for irrep, part in zip(order, parts, strict=True)}
    return {f"{name}.weights.{n}": found[irrep] for n, irrep in enumerate(matching)}


def checked(model: nn.Module, ours: Weights) -> dict[str, Tensor]:
    """The weights in float64, each of the shape that the model has.

    Raises:
        InputError: naming the first that is missing, has another shape, or has no place in the model.
    """
    expected = {name: parameter.shape for name, parameter in model.named_parameters()}
    for name, shape in expected.items():
        if name not in ours or ours[name].shape != shape:
            found = "missing" if name not in ours else f"of shape {tuple(ours[name].shape)}"
            raise InputError(f"the weights of {name} are {found}, expected {tuple(shape)}")
    if spare := sorted(set(ours) - set(expected)):
        raise InputError(f"has weights {spare[0]} that a model with its options does not have")
    return {name: value.to(torch.float64).contiguous() for name, value in ours.items()}
