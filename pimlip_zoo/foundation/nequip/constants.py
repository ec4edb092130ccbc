"""Numbers that files of ``nequip`` and ``nequip-allegro`` keep beside their weights and that follow from the options.

Those packages compute with the numbers of the file, this one with those of the options: both have to be the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from pimlip_zoo.errors import InputError
from pimlip_zoo.foundation.shapes import Weights
from pimlip_zoo.models.allegro import Allegro, AllegroConfig, AllegroLayer
from pimlip_zoo.models.nequip import NequIP, NequIPConfig
from pimlip_zoo.nn.contraction import ContractionSpec
from pimlip_zoo.nn.edges import pair_cutoffs

_TOLERANCE = 1e-6
"""Of numbers of about one, some of which are kept in single precision."""


def check_constants(model: NequIP | Allegro, weights: Weights) -> None:
    """Compare what a file keeps with what the options of its model say.

    Args:
        model: built by those options; its weights do not matter.
        weights: all tensors of the file by their names in its model; what it does not keep is passed over.

    Raises:
        InputError: naming the first that differs.
    """
    for name, value in weights.items():
        place, _, last = name.rpartition(".")
        if last in _EXPECTED:
            what, expected = _EXPECTED[last]
            _compare(name, value, what, expected(model, place, weights))
    for index, layer in enumerate(model.layers if isinstance(model, Allegro) else ()):
        name = f"allegro.tps.{index}.w3j"
        if name in weights:
            assert isinstance(layer, AllegroLayer)
            value = weights[name]
            _compare(name, value, "couplings", _couplings(layer.contraction.spec, value.numel()))


def _compare(name: str, given: Tensor, what: str, expected: Tensor | None) -> None:
    """The file may have one number where all are the same; None: nothing that is fixed."""
    if expected is None:
        return
    found, wanted = given.to(torch.float64).reshape(-1), expected.reshape(-1)
    found = found.expand(len(wanted)) if len(found) == 1 and len(wanted) else found
    same = 0 < len(found) == len(wanted)
    if not same or not torch.allclose(found, wanted, rtol=_TOLERANCE, atol=_TOLERANCE):
        raise InputError(f"has other {what} in {name} than its options say")


def _config(model: NequIP | Allegro) -> NequIPConfig | AllegroConfig:
    assert isinstance(model.config, NequIPConfig | AllegroConfig)
    return model.config


def _frequencies(model: NequIP | Allegro, _: str, __: Weights) -> Tensor | None:
    """1, 2, ... unless they are trained."""
    config = _config(model)
    return None if config.bessel_trainable else torch.arange(1.0, config.num_bessel + 1, dtype=torch.float64)


def _inverse_cutoffs(model: NequIP | Allegro, _: str, __: Weights) -> Tensor:
    """By centre and neighbour; the file has one number where all are the same."""
    config = _config(model)
    return pair_cutoffs(model.species, config.cutoff, config.species_cutoffs).reciprocal()


def _neighbours(model: NequIP | Allegro, _: str, __: Weights) -> Tensor:
    mean = _config(model).avg_num_neighbors
    return torch.tensor(1.0 / math.sqrt(mean or 1.0), dtype=torch.float64)


def _gain(_: NequIP | Allegro, place: str, weights: Weights) -> Tensor | None:
    """Of a layer of an MLP: those behind an activation have the root of two in it."""
    weight = weights.get(f"{place}.weight")
    if weight is None:
        return None
    gain = 1.0 if place.endswith(".0") else 2.0
    return torch.tensor(math.sqrt(gain / weight.shape[0]), dtype=torch.float64)


def _degrees(model: NequIP | Allegro, _: str, __: Weights) -> Tensor:
    """Which components of the harmonics each degree has."""
    degree = torch.tensor([n for n in range(_config(model).l_max + 1) for _ in range(2 * n + 1)])
    return torch.nn.functional.one_hot(degree).t().to(torch.float64)


_Expected = Callable[[NequIP | Allegro, str, Weights], Tensor | None]
_EXPECTED: Mapping[str, tuple[str, _Expected]] = {
    "bessel_weights": ("frequencies", _frequencies),
    "_rmax_recip": ("cutoffs", _inverse_cutoffs),
    "norm_const": ("numbers of neighbours", _neighbours),
    "alpha": ("factors", _gain),
    "_rtoi": ("components of degrees", _degrees),
}
"""By the last part of their names; the last three stand in packages alone."""


def _couplings(spec: ContractionSpec, count: int) -> Tensor:
    """The numbers of all paths; where the components of both factors go in step, the package keeps those alone.

    Empty where the file has neither as many as the one nor as the other: they may be too many to be made for nothing.
    """
    sizes = [len(spec.paths), spec.irreps_in.dim, spec.irreps_environment.dim, spec.irreps_out.dim]
    in_step = sizes[1] == sizes[2] and all(a == b for _, a, b, _, _ in spec.terms)
    if in_step and count == sizes[0] * sizes[1] * sizes[3]:
        numbers = torch.zeros(sizes[0], sizes[1], sizes[3], dtype=torch.float64)
        for path, a, _, k, value in spec.terms:
            numbers[path, a, k] = value
        return numbers
    numbers = torch.zeros(sizes if count == math.prod(sizes) else 0, dtype=torch.float64)
    for path, a, b, k, value in spec.terms if numbers.numel() else ():
        numbers[path, a, b, k] = value
    return numbers
