"""Weights of SevenNet under this package's names, for one of its levels of theory.

A level enters that package's linear maps as a one-hot vector beside the scalars. For one level that is a constant,
which is added to the scalars; what it adds to the energy is part of the shift.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from e3nn import o3
from torch import Tensor

from pimlip_zoo.errors import InputError
from pimlip_zoo.foundation.sevennet.layout import Layer, Layout, copies
from pimlip_zoo.models.nequip import NequIP, NequIPLayer
from pimlip_zoo.nn.linear import EquivariantLinear, SpeciesLinear

Weights = Mapping[str, Tensor]

_ELSEWHERE = (
    *("output_mask", "_convolution.denominator", "edge_embedding.basis_function.coeffs"),
    *("rescale_atomic_energy.scale", "rescale_atomic_energy.shift"),
)
"""Ends of the names of constants, and of what is read with the options."""
_OLD_NAMES = {
    "EdgeEmbedding": "edge_embedding",
    "reducing_nn_input_to_hidden": "reduce_input_to_hidden",
    "reducing_nn_hidden_to_energy": "reduce_hidden_to_energy",
}


@dataclass(frozen=True)
class Converted:
    """Weights, and what the readout adds to every atom's energy before it is scaled."""

    weights: dict[str, Tensor]
    constant: float


def current_names(state: Weights) -> dict[str, Tensor]:
    """A state dict under the names of version 0.10 on: earlier ones have spaces in them."""
    found = {}
    for key, value in state.items():
        module, _, rest = key.partition(".")
        module = module.replace(" ", "_")
        module = _OLD_NAMES.get(module, module)
        found[f"{module}.{rest.replace('denumerator', 'denominator')}"] = value
    return found


def convert_weights(
    model: NequIP, layout: Layout, theirs: Weights, *, level: int | None, paths_sorted: bool
) -> Converted:
    """The state dict that makes a model compute what a SevenNet model with that layout computes.

    Args:
        model: where the weights are to go.
        layout: of the file.
        theirs: its state dict, with current names.
        level: which level of theory, where there are several.
        paths_sorted: the radial weights are in the order of the irreps that paths end in, as from 0.11 on.

    Raises:
        InputError: when numbers of weights do not fit.
    """
    reader = _Reader({name: value.to(torch.float64) for name, value in theirs.items()}, layout, level)
    count = len(layout.species)
    one_hot = o3.Irreps(f"{count}x0e")
    matrices, bias = reader.linear("onehot_to_feature_x", one_hot, layout.layers[0].irreps_in)
    ours = {"species_embedding": matrices[o3.Irrep("0e")] + bias}
    for index, (layer, its) in enumerate(zip(model.layers, layout.layers, strict=True)):
        assert isinstance(layer, NequIPLayer)
        converted = _layer(reader, layer, its, index, paths_sorted=paths_sorted)
        ours |= {f"layers.{index}.{name}": value for name, value in converted.items()}
    last = layout.layers[-1].irreps_out
    hidden = reader.numel("reduce_hidden_to_energy")
    middle = o3.Irreps(f"{hidden}x0e")
    first, before = reader.linear("reduce_input_to_hidden", last, middle)
    second, after = reader.linear("reduce_hidden_to_energy", middle, o3.Irreps("1x0e"))
    both = second[o3.Irrep("0e")]
    ours["readout.weights.0"] = first[o3.Irrep("0e")] @ both * math.sqrt(last.dim)
    constant = float((before @ both + after).sum())
    reader.finish()
    return Converted({name: value.contiguous() for name, value in ours.items()}, constant)


class _Reader:
    """That package's linear maps as matrices without factors."""

    def __init__(self, theirs: Weights, layout: Layout, level: int | None) -> None:
        self.theirs, self.layout, self.level = theirs, layout, level
        self.seen: set[str] = set()

    def finish(self) -> None:
        """Refuse weights that nobody asked for: the file holds a part that is not known here.

        Raises:
            InputError: naming the first.
        """
        for name, value in sorted(self.theirs.items()):
            known = name in self.seen or name.endswith(_ELSEWHERE) or "._w3j" in name
            if value.numel() and not known:
                raise InputError(f"has weights {name[:80]}, of a part that cannot be converted")

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.theirs:
            raise InputError(f"has no weights {name}")
        self.seen.add(name)
        return self.theirs[name]

    def numel(self, module: str) -> int:
        """How many weights a linear map has."""
        return self[f"{module}.linear.weight"].numel()

    def linear(
        self, module: str, irreps_in: o3.Irreps, irreps_out: o3.Irreps
    ) -> tuple[dict[o3.Irrep, Tensor], Tensor]:
        """What each irrep is multiplied by, and what is added to the even scalars.

        A map that sees the level of theory has as many more scalars as there are levels.
        """
        flat = self[f"{module}.linear.weight"].reshape(-1)
        shapes = [
            (irrep, int(n), int(m)) for n, irrep in irreps_in for m, other in irreps_out if irrep == other
        ]
        levels = len(self.layout.levels)
        even = sum(int(m) for m, irrep in irreps_out if irrep == o3.Irrep("0e"))
        plain = sum(n * m for _, n, m in shapes)
        sees = levels > 1 and flat.numel() == plain + levels * even
        if not sees and flat.numel() != plain:
            raise InputError(f"{module} has {flat.numel()} weights where its options need {plain}")
        found, start = {}, 0
        for irrep, n, m in shapes:
            fan_in = n + (levels if sees and irrep == o3.Irrep("0e") else 0)
            found[irrep] = flat[start : start + n * m].view(n, m) / math.sqrt(fan_in)
            start += n * m
        added = torch.zeros(even, dtype=torch.float64)
        if sees:
            assert self.level is not None
            scalars = sum(n for irrep, n, _ in shapes if irrep == o3.Irrep("0e"))
            added = added + flat[start:].view(levels, even)[self.level] / math.sqrt(scalars + levels)
        self.seen.add(f"{module}.linear.bias")
        bias = self.theirs.get(f"{module}.linear.bias")
        if bias is not None and bias.numel():
            if bias.numel() != even:
                raise InputError(f"{module} has {bias.numel()} biases for {even} scalars")
            added = added + bias.reshape(-1)
        return found, added

    def by_element(self, module: str, irreps_in: o3.Irreps, irreps_out: o3.Irreps) -> dict[o3.Irrep, Tensor]:
        """The self-connection with weights for each element: (in, element, out), factors left out."""
        flat, count = self[f"{module}.fc_tensor_product.weight"].reshape(-1), len(self.layout.species)
        found, start = {}, 0
        for n, irrep in irreps_in:
            for m, other in irreps_out:
                if irrep == other:
                    size = int(n) * count * int(m)
                    found[irrep] = flat[start : start + size].reshape(-1, count, int(m))
                    start += size
        if start != flat.numel():
            raise InputError(f"{module} has {flat.numel()} weights where its options need {start}")
        return found


def _layer(
    reader: _Reader, layer: NequIPLayer, its: Layer, index: int, *, paths_sorted: bool
) -> dict[str, Tensor]:
    ours: dict[str, Tensor] = {}
    into, bias_in = reader.linear(f"{index}_self_interaction_1", its.irreps_in, its.irreps_in)
    out, bias_out = reader.linear(f"{index}_self_interaction_2", its.summed, its.gated)
    rows = _rows(layer, its)
    out = {irrep: matrix[rows[irrep]] for irrep, matrix in out.items() if irrep in rows}
    gate, columns = _gates(layer, its)
    out = _reordered(out, gate, columns)
    if gate == o3.Irrep("0e"):
        bias_out = bias_out[columns]
    ours |= _filled("linear_in", layer.linear_in, into) | _filled("linear_out", layer.linear_out, out)
    name = f"{index}_self_connection_intro"
    if layer.shared_connection is not None:
        across, bias = reader.linear(name, its.irreps_in, its.gated)
        bias_out = bias_out + (bias[columns] if gate == o3.Irrep("0e") else bias)
        across = _reordered(across, gate, columns)
        ours |= _filled("shared_connection", layer.shared_connection, across)
    elif layer.self_connection is not None:
        by_element = reader.by_element(name, its.irreps_in, its.gated)
        by_element = _reordered(by_element, gate, columns)
        ours |= _listed("self_connection", layer.self_connection, by_element)
    if layer.bias_in is not None and layer.bias_out is not None:
        for place, module, value in (
            ("bias_in", layer.bias_in, bias_in),
            ("bias_out", layer.bias_out, bias_out),
        ):
            ours[f"{place}.bias"] = value.reshape(module.bias.shape)
    elif bool(bias_in.any()) or bool(bias_out.any()):
        raise InputError(f"has biases in layer {index}, and options without")
    prefix, count = f"{index}_convolution.weight_nn.layer", len(layer.radial.weights)
    for number in range(count):
        ours[f"radial.weights.{number}"] = reader[f"{prefix}{number}.weight"]
    last = f"radial.weights.{count - 1}"
    ours[last] = _columns(reader, layer, its, index, ours[last], paths_sorted=paths_sorted)
    return ours


def _gates(layer: NequIPLayer, its: Layer) -> tuple[o3.Irrep, list[int]]:
    """The scalar that gates, and where in its block our scalars and gates lie in that package's.

    Both have the scalars first, then a gate for each of the other irreps, in the order of those: ours have 1e before
    1o, that package's 1o before 1e.
    """
    names = [irrep for _, irrep in its.irreps_out]
    gate = o3.Irrep("0e" if o3.Irrep("0e") in names else "0o")
    start = copies(its.irreps_out, gate)
    columns, places = list(range(start)), {}
    for n, irrep in its.irreps_out:
        if irrep.l > 0:
            places[irrep] = range(start, start + int(n))
            start += int(n)
    for _, irrep in layer.irreps_out:
        if irrep.l > 0:
            columns += places[irrep]
    return gate, columns


def _reordered(
    matrices: Mapping[o3.Irrep, Tensor], gate: o3.Irrep, columns: list[int]
) -> dict[o3.Irrep, Tensor]:
    return {irrep: matrix[..., columns] if irrep == gate else matrix for irrep, matrix in matrices.items()}


def _columns(
    reader: _Reader, layer: NequIPLayer, its: Layer, index: int, weight: Tensor, *, paths_sorted: bool
) -> Tensor:
    """Radial weights in the order of our paths; older files may have couplings of the other sign."""
    order = (
        sorted(range(len(its.paths)), key=lambda p: its.paths[p][2])
        if paths_sorted
        else range(len(its.paths))
    )
    widths = [its.width(irrep) for irrep, _, _ in its.paths]
    if weight.dim() != 2 or weight.shape[1] != sum(widths):
        raise InputError(
            f"the radial functions of layer {index} weigh {tuple(weight.shape)}, expected {sum(widths)}"
        )
    parts, start = {}, 0
    for path in order:
        parts[its.paths[path]] = weight[:, start : start + widths[path]] * _sign(
            reader, its.paths[path], index
        )
        start += widths[path]
    spec = layer.convolution.spec
    return torch.cat(
        [parts[spec.irreps_in[i].ir, spec.irreps_edge[j].ir.l, irrep] for i, j, irrep in spec.paths], dim=1
    )


def _sign(reader: _Reader, path: tuple[o3.Irrep, int, o3.Irrep], index: int) -> int:
    """Of the coupling that the file was trained with, relative to today's; e3nn changed it for some degrees."""
    degrees = (path[0].l, path[1], path[2].l)
    name = f"{index}_convolution.convolution._compiled_main_left_right._w3j_{'_'.join(map(str, degrees))}"
    theirs = reader.theirs.get(name)
    if theirs is None:
        return 1
    ours = o3.wigner_3j(*degrees, dtype=torch.float64)
    if theirs.shape == ours.shape and torch.allclose(theirs, ours, atol=1e-5):
        return 1
    if theirs.shape == ours.shape and torch.allclose(theirs, -ours, atol=1e-5):
        return -1
    raise InputError(f"couples the degrees {degrees} in a way that is not known")


def _rows(layer: NequIPLayer, its: Layer) -> dict[o3.Irrep, Tensor]:
    """Where the rows of what we sum lie in what that package sums, by irrep."""
    spec = layer.convolution.spec
    begin: dict[tuple[o3.Irrep, int, o3.Irrep], int] = {}
    size: dict[o3.Irrep, int] = {}
    for irrep, degree, result in its.paths:
        begin[irrep, degree, result] = size.get(result, 0)
        size[result] = size.get(result, 0) + its.width(irrep)
    rows: dict[o3.Irrep, list[int]] = {}
    for i, j, result in spec.paths:
        irrep = spec.irreps_in[i].ir
        start = begin[irrep, spec.irreps_edge[j].ir.l, result]
        rows.setdefault(result, []).extend(range(start, start + its.width(irrep)))
    return {result: torch.tensor(found) for result, found in rows.items()}


def _filled(name: str, linear: EquivariantLinear, matrices: Mapping[o3.Irrep, Tensor]) -> dict[str, Tensor]:
    """Weights of a map whose blocks multiply by these matrices."""
    found = _listed(name, linear, matrices)
    return {key: matrix * math.sqrt(matrix.shape[0]) for key, matrix in found.items()}


def _listed(
    name: str, linear: EquivariantLinear | SpeciesLinear, matrices: Mapping[o3.Irrep, Tensor]
) -> dict[str, Tensor]:
    present = {irrep for _, irrep in linear.irreps_in}
    blocks = [irrep for _, irrep in linear.irreps_out if irrep in present]
    return {f"{name}.weights.{number}": matrices[irrep] for number, irrep in enumerate(blocks)}
