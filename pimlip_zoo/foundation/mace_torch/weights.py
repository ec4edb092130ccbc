"""Weights of ``mace-torch`` under this package's names, in its shapes and its basis of couplings.

Only tensors are handled here.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pimlip_zoo.errors import InputError
from pimlip_zoo.foundation.shapes import Weights, blocks_of, checked
from pimlip_zoo.models.mace import MACE, MACEConfig, MACELayer
from pimlip_zoo.nn.convolution import ConvolutionSpec
from pimlip_zoo.nn.symmetric_contraction import SymmetricContraction, SymmetricContractionSpec, WeightBlock

Array = NDArray[np.float64]


def convert_weights(model: MACE, theirs: Weights, *, head: int = 0) -> dict[str, Tensor]:
    """The state dict that makes a model compute what a ``ScaleShiftMACE`` with the same options computes.

    Args:
        model: where the weights are to go.
        theirs: the state dict of the ``ScaleShiftMACE``, with its ``U_matrix`` buffers.
        head: which of its heads to take.

    Raises:
        InputError: when shapes or couplings do not fit.
    """
    ours = {
        "species_embedding": theirs["node_embedding.linear.weight"].reshape(model.species_embedding.shape)
    }
    config = model.config
    assert isinstance(config, MACEConfig)
    if config.bessel_trainable:
        frequencies = theirs["radial_embedding.bessel_fn.bessel_weights"] * model.cutoff
        ours["edges.basis.frequencies"] = frequencies.reshape(-1)
    for index, layer in enumerate(model.layers):
        assert isinstance(layer, MACELayer)
        converted = _layer(layer, theirs, f"interactions.{index}.", f"products.{index}.")
        ours |= {f"layers.{index}.{name}": value for name, value in converted.items()}
        ours |= _readout(config, theirs, index, head)
    return checked(model, ours)


def _layer(layer: MACELayer, theirs: Weights, interaction: str, product: str) -> dict[str, Tensor]:
    ours: dict[str, Tensor] = {}
    for name, linear, their_name in (
        ("linear_in", layer.linear_in, f"{interaction}linear_up"),
        ("linear_out", layer.linear_out, f"{interaction}linear"),
        ("skip", layer.skip, f"{interaction}skip_tp"),
        ("linear_update", layer.linear_update, f"{product}linear"),
    ):
        ours |= blocks_of(name, linear, theirs, their_name)
    for index in range(len(layer.radial.weights)):
        ours[f"radial.weights.{index}"] = theirs[f"{interaction}conv_tp_weights.layer{index}.weight"]
    last = f"radial.weights.{len(layer.radial.weights) - 1}"
    ours[last] = radial_columns(layer.convolution.spec, ours[last])
    if layer.density is not None:
        ours["density.weights.0"] = theirs[f"{interaction}density_fn.layer0.weight"]
    ours["contraction.weights"] = contraction_of(
        layer.contraction, theirs, f"{product}symmetric_contractions."
    )
    return ours


def radial_columns(spec: ConvolutionSpec, weight: Tensor) -> Tensor:
    """(rows, paths times channels) of theirs in our order.

    Their paths are sorted by the irrep that they end in, and their edges point to the centre.
    """
    order = sorted(range(len(spec.paths)), key=lambda path: spec.paths[path][2])
    columns = weight.reshape(weight.shape[0], len(order), -1)
    ours = torch.empty_like(columns)
    for place, path in enumerate(order):
        degree = spec.irreps_edge[spec.paths[path][1]].ir.l
        ours[:, path] = columns[:, place] * (-1) ** degree
    return ours.flatten(1)


def _readout(config: MACEConfig, theirs: Weights, index: int, head: int) -> dict[str, Tensor]:
    """Heads lie side by side; the hidden units of the last readout belong to one head each."""
    channels, name, their_name = config.channels, f"readouts.{index}.weights", f"readouts.{index}."
    if not config.readout_hidden or index < config.num_interactions - 1:
        return {f"{name}.0": theirs[f"{their_name}linear.weight"].reshape(channels, -1)[:, head : head + 1]}
    width = config.readout_hidden[0]
    first = theirs[f"{their_name}linear_1.weight"].reshape(channels, -1)
    heads = first.shape[1] // width
    units = slice(head * width, (head + 1) * width)
    second = theirs[f"{their_name}linear_2.weight"].reshape(heads * width, heads)
    # Both packages divide by the square root of the number of hidden units, here without those of other heads.
    return {f"{name}.0": first[:, units], f"{name}.1": second[units, head : head + 1] / heads**0.5}


def contraction_of(contraction: SymmetricContraction, theirs: Weights, prefix: str) -> Tensor:
    """Their weights stand for polynomials ``U w``; ours are those that make the same polynomials."""
    spec = contraction.spec
    ours = torch.zeros(contraction.weights.shape, dtype=torch.float64)
    irreps = [irrep for _, irrep in spec.irreps_out]
    for block in spec.blocks:
        if block.size == 0:
            continue
        place = f"{prefix}contractions.{irreps.index(block.irrep_out)}."
        below = spec.correlation - 1 - block.order
        weights = theirs[f"{place}weights_max" if below < 0 else f"{place}weights.{below}"].to(torch.float64)
        change = _change_of_basis(spec, block, theirs[f"{place}U_matrix_{block.order}"])
        ours[:, block.first : block.first + block.size] = torch.einsum("pq,sqc->spc", change, weights)
    return ours


def _change_of_basis(spec: SymmetricContractionSpec, block: WeightBlock, u_matrix: Tensor) -> Tensor:
    """(our weights, their weights) of one irrep and order: the matrix M with ``U_ours M = U_theirs``."""
    components = spec.irreps_out.slices()[[irrep for _, irrep in spec.irreps_out].index(block.irrep_out)]
    place = {term: index for index, term in enumerate(spec.terms)}
    values = u_matrix.to(torch.float64).numpy()
    if block.irrep_out.dim == 1:
        values = values[None]
    theirs: Array = np.zeros((len(spec.terms), values.shape[-1]))
    others: dict[tuple[int, ...], Array] = {}
    index = np.argwhere(np.abs(values).max(axis=-1) > 0)
    for component, *factors in index.tolist():
        entry = (component, *factors)
        unordered = (component, *sorted(factors))
        term = place.get((components.start + component, unordered[1:]))
        if term is None:  # what their antisymmetric couplings leave cancels
            others[unordered] = others.get(unordered, np.zeros(values.shape[-1])) + values[entry]
        else:
            theirs[term] += values[entry]
    ours = spec.table[:, block.first : block.first + block.size]
    same = ours.shape == theirs.shape and np.allclose(ours, theirs, rtol=0, atol=1e-6)
    change = np.eye(block.size) if same else np.linalg.lstsq(ours, theirs, rcond=1e-10)[0]
    if (
        max(float(np.abs(left).max(initial=0.0)) for left in (ours @ change - theirs, *others.values()))
        > 1e-5
    ):
        raise InputError(
            f"the file couples features to {block.irrep_out} in a way that the order {block.order} does not have here"
        )
    return torch.from_numpy(change)
