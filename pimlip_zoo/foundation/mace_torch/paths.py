"""Whether linear layers and tensor products of a recorded model have the paths that their weights are converted for.

e3nn keeps one vector of weights for all paths of a layer, in the order of its instructions, and a constant for each
path. Another order, another normalisation or other irreps need as many weights and compute another function.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterator, Sequence
from typing import Any

from e3nn import o3

from pimlip_zoo.errors import InputError
from pimlip_zoo.foundation.mace_torch.internals import expect
from pimlip_zoo.foundation.mace_torch.layout import irreps_text, parts_of
from pimlip_zoo.foundation.mace_torch.options import plain
from pimlip_zoo.foundation.unpickle import Record
from pimlip_zoo.models.mace import MACE, MACELayer
from pimlip_zoo.models.mace_nonlinear import MACENonlinear, NonlinearLayer
from pimlip_zoo.nn.convolution import ConvolutionSpec
from pimlip_zoo.nn.linear import EquivariantLinear, SpeciesLinear

Part = tuple[int, int, int]
"""Multiplicity, degree, parity."""
Path = tuple[Any, ...]
"""An instruction of e3nn: numbers of the irreps, constants, shape."""

_SHORT = reprlib.Repr()
_SHORT.maxtuple = 7  # all numbers of a path
_SCALAR = (0, 1)
_LAYERS = {
    MACELayer: {
        "interactions.#.linear_up": "linear_in",
        "interactions.#.linear": "linear_out",
        "interactions.#.skip_tp": "skip",
        "products.#.linear": "linear_update",
    },
    NonlinearLayer: {
        "interactions.#.linear_up": "linear_in",
        "interactions.#.linear_res": "linear_self",
        "interactions.#.linear_1": "linear_message",
        "interactions.#.linear_2": "linear_basis",
        "interactions.#.skip_tp": "skip",
        "products.#.linear": "linear_update",
    },
}
"""Names of layers there and here."""


def check_paths(record: Record, model: MACE | MACENonlinear) -> None:
    """Compare irreps and instructions of each layer with those of the layer that its weights are given to.

    Args:
        record: the ``ScaleShiftMACE``.
        model: what it is converted to.

    Raises:
        InputError: naming the first layer with another irrep, order of paths or constant.
    """
    for n, layer in enumerate(model.layers):
        assert isinstance(layer, MACELayer | NonlinearLayer)
        for their_name, name in _LAYERS[type(layer)].items():
            place, linear = their_name.replace("#", str(n)), getattr(layer, name)
            given = _irreps(linear.irreps_in, linear.channels_in)
            wanted = _irreps(linear.irreps_out, linear.channels_out)
            if isinstance(linear, SpeciesLinear):
                _check_species(record, place, given, len(model.species), wanted)
            else:
                assert isinstance(linear, EquivariantLinear)
                _check_linear(record, place, given, wanted)
        spec = layer.convolution.spec
        _check_convolution(record, f"interactions.{n}.conv_tp", spec, layer.linear_in.channels_out)
        _check_reshape(record, n, spec.irreps_edge, layer.linear_update.channels_in)
        gate = record[f"interactions.{n}.equivariant_nonlin"]
        if isinstance(gate, Record) and gate["mul"] is not None:
            gated = _irreps(spec.irreps_edge[1:], layer.linear_update.channels_in)
            _check_gate(record, f"interactions.{n}.equivariant_nonlin", gated)
    for place, inside, outside in _scalar_layers(record, model):
        _check_linear(record, place, inside, outside)


def _scalar_layers(
    record: Record, model: MACE | MACENonlinear
) -> Iterator[tuple[str, list[Part] | None, list[Part] | None]]:
    """Layers whose weights are matrices of scalars alone: embeddings of species and readouts."""
    count = len(model.species)
    updates = [layer.linear_update for layer in model.layers if isinstance(layer, MACELayer | NonlinearLayer)]
    channels = updates[0].channels_in
    yield "node_embedding.linear", [(count, *_SCALAR)], [(channels, *_SCALAR)]
    for n in range(len(record["interactions"])):
        for name in ("source_embedding", "target_embedding"):
            if record[f"interactions.{n}.{name}"] is not None:
                yield f"interactions.{n}.{name}", [(count, *_SCALAR)], None
    first = len(updates) - len(record["readouts"])
    for n, readout in enumerate(record["readouts"]):
        update = updates[first + n]
        features = _irreps(update.irreps_out, update.channels_out)
        for name in readout.children:
            if name.startswith("linear"):
                yield f"readouts.{n}.{name}", features if name in ("linear", "linear_1") else None, None
    if record["embedding_readout"] is not None:
        yield "embedding_readout.linear", [(channels, *_SCALAR)], None


def _irreps(irreps: o3.Irreps, channels: int) -> list[Part]:
    return [(mul * channels, irrep.l, irrep.p) for mul, irrep in irreps]


def _check_linear(record: Record, place: str, given: list[Part] | None, wanted: list[Part] | None) -> None:
    """Each irrep of the result sums over all equal ones, divided by the square root of their number.

    Where the irreps are not known, they have to be scalars, of one multiplicity.
    """
    layer = record[place]
    inside = _check_irreps(place, "irreps_in", layer, given)
    outside = _check_irreps(place, "irreps_out", layer, wanted)
    paths: list[Path] = []
    for i, (mul, *irrep) in enumerate(inside):
        number = sum(other for other, *kind in inside if kind == irrep)
        paths += [(i, j, (mul, out), number**-0.5) for j, (out, *kind) in enumerate(outside) if kind == irrep]
    biased = layer["bias"] is not None and layer["bias"].numel() > 0
    if biased:
        paths.append((-1, 0, (outside[0][0],), 1.0))
    _check_instructions(place, layer, paths)


def _check_species(
    record: Record, place: str, given: list[Part], num_species: int, wanted: list[Part]
) -> None:
    """The same with a matrix for each species."""
    layer = record[place]
    inside = _check_irreps(place, "irreps_in1", layer, given)
    _check_irreps(place, "irreps_in2", layer, [(num_species, *_SCALAR)])
    outside = _check_irreps(place, "irreps_out", layer, wanted)
    paths: list[Path] = []
    for i, (mul, degree, parity) in enumerate(inside):
        number = num_species * sum(other for other, *kind in inside if kind == [degree, parity])
        constant = math.sqrt((2 * degree + 1) / number)
        paths += [
            (i, 0, j, "uvw", True, constant, (mul, num_species, out))
            for j, (out, *kind) in enumerate(outside)
            if kind == [degree, parity]
        ]
    _check_instructions(place, layer, paths)


def _check_convolution(record: Record, place: str, spec: ConvolutionSpec, channels: int) -> None:
    """Each path has weights of its own, and ends in an irrep of its own; these are sorted."""
    layer = record[place]
    _check_irreps(place, "irreps_in1", layer, _irreps(spec.irreps_in, channels))
    _check_irreps(place, "irreps_in2", layer, _irreps(spec.irreps_edge, 1))
    ordered = sorted(spec.paths, key=lambda path: path[2])
    _check_irreps(place, "irreps_out", layer, [(channels, irrep.l, irrep.p) for *_, irrep in ordered])
    paths = [
        (i, j, k, "uvu", True, math.sqrt(irrep.dim), (channels, 1)) for k, (i, j, irrep) in enumerate(ordered)
    ]
    _check_instructions(place, layer, paths)


def _check_irreps(place: str, name: str, layer: Any, expected: list[Part] | None) -> list[Part]:
    """What the layer has, which may name an irrep several times in a row."""
    irreps = layer[name] if isinstance(layer, Record) else None
    if not isinstance(irreps, Record):
        raise InputError(f"has no {place}.{name}", hint="a layer of e3nn has it")
    found = parts_of(irreps)
    known = expected
    if known is None:
        known = [(found[0][0] if len(found) == 1 else 0, *_SCALAR)]
    if _joined(found) != _joined(known):
        raise InputError(f"{place}.{name} is {irreps_text(found)[:80]}, and {irreps_text(known)[:80]} here")
    return found


def _joined(parts: Sequence[Part]) -> list[Part]:
    joined: list[Part] = []
    for mul, degree, parity in parts:
        before = joined.pop()[0] if joined and joined[-1][1:] == (degree, parity) else 0
        if before + mul:
            joined.append((before + mul, degree, parity))
    return joined


def _check_instructions(place: str, layer: Record, expected: Sequence[Path]) -> None:
    recorded = layer["instructions"]
    if not isinstance(recorded, list):
        raise InputError(f"has no {place}.instructions", hint="a layer of e3nn has them")
    found = [tuple(item.arguments) if isinstance(item, Record) else item for item in recorded]
    if len(found) != len(expected):
        raise InputError(f"{place} has {len(found)} paths, and {len(expected)} here")
    for n, (theirs, ours) in enumerate(zip(found, expected, strict=True)):
        if not isinstance(theirs, tuple) or not _agree(theirs, ours):
            raise InputError(
                f"{place}.instructions.{n} is {_SHORT.repr(theirs)}, and {_SHORT.repr(ours)} here",
                hint="the order of the paths and the constants of e3nn's normalisation are compared",
            )


def _agree(theirs: Path, ours: Path) -> bool:
    if len(theirs) != len(ours):
        return False
    for given, expected in zip(theirs, ours, strict=True):
        if isinstance(expected, float):
            if type(given) not in (int, float) or not abs(given - expected) <= 1e-6 * expected:
                return False
        elif type(given) is not type(expected) or given != expected:
            return False
    return True


def _check_gate(record: Record, place: str, gated: list[Part]) -> None:
    """e3nn's, in files of versions before 0.3.16: each of the other features times a scalar of its own."""
    product = record[f"{place}.mul"]
    gates = [(mul, *_SCALAR) for mul, *_ in gated]
    _check_irreps(f"{place}.mul", "irreps_in1", product, gated)
    _check_irreps(f"{place}.mul", "irreps_in2", product, gates)
    _check_irreps(f"{place}.mul", "irreps_out", product, gated)
    paths = [
        (i, i, i, "uuu", False, math.sqrt(2 * degree + 1), (mul,)) for i, (mul, degree, _) in enumerate(gated)
    ]
    _check_instructions(f"{place}.mul", product, paths)
    scalars = [(gated[0][0], *_SCALAR), (sum(mul for mul, *_ in gated), *_SCALAR)]
    cut = record[f"{place}.sc.cut"]
    _check_irreps(f"{place}.sc.cut", "irreps_in", cut, [*scalars, *gated])
    expect(record, f"{place}.sc.cut.instructions", [(0,), (1,), (*range(2, 2 + len(gated)),)])
    for name in ("act_scalars", "act_gates"):
        acts = record[f"{place}.{name}.acts"]
        if not isinstance(acts, Record) or any(
            act is None or plain(act["f"]) != plain(acts["0.f"]) or act["cst"] != acts["0.cst"]
            for act in acts
        ):
            raise InputError(f"{place}.{name} has activations that differ")


def _check_reshape(record: Record, n: int, irreps: o3.Irreps, channels: int) -> None:
    """How the gathered features are laid out for the product."""
    if not isinstance(record[f"interactions.{n}.reshape"], Record):
        raise InputError(f"has no interactions.{n}.reshape")
    for name, expected in (("dims", [irrep.dim for _, irrep in irreps]), ("muls", [channels] * len(irreps))):
        expect(record, f"interactions.{n}.reshape.{name}", expected)
    expect(record, f"interactions.{n}.reshape.cueq_config.layout_str", "mul_ir")
