"""Whether a recorded model computes with what its weights suggest: the features, harmonics and radial functions.

Models with other features can have as many weights as one that is supported, and would be converted
to another function.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from pimlip_zoo.errors import InputError
from pimlip_zoo.foundation.mace_torch.internals import check_internals
from pimlip_zoo.foundation.unpickle import Record
from pimlip_zoo.models.mace import MACEConfig
from pimlip_zoo.models.mace_nonlinear import MACENonlinearConfig


def check_layout(record: Record, config: MACEConfig | MACENonlinearConfig) -> None:
    """Compare what a file says of its layers with the model that its weights are given to.

    Attributes that a file does not have, as those of older versions, are not compared.

    Raises:
        InputError: naming the first that differs.
    """
    check_internals(record, config)
    last = config.num_interactions - 1
    edges = _natural(1, config.l_max)
    for n in range(config.num_interactions):
        features = _natural(config.channels, config.hidden_l_max if n < last else 0)
        _check(
            f"products.{n}", "features", record[f"products.{n}.symmetric_contractions.irreps_out"], features
        )
        _check(f"interactions.{n}", "harmonics", record[f"interactions.{n}.edge_attrs_irreps"], edges)
        residual = n > 0 or isinstance(config, MACENonlinearConfig) or config.residual_first
        if record[f"products.{n}.use_sc"] not in (None, residual):
            raise InputError(f"products.{n} has use_sc = {not residual}, which is not supported here")
    _check("spherical_harmonics", "harmonics", record["spherical_harmonics.irreps_out"], edges)
    for name, expected in (("normalization", "component"), ("normalize", True)):
        if record[f"spherical_harmonics.{name}"] not in (None, expected):
            raise InputError(f"has spherical harmonics with another {name} than {expected}")
    for name, number in (
        ("bessel_fn.prefactor", math.sqrt(2 / config.cutoff)),
        ("bessel_fn.r_max", config.cutoff),
        ("cutoff_fn.r_max", config.cutoff),
    ):
        value = record[f"radial_embedding.{name}"]
        if isinstance(value, Tensor | float | int) and abs(float(value) - number) > 1e-5 * number:
            raise InputError(f"radial_embedding.{name} is {float(value):g}, and {number:g} here")


def _natural(channels: int, l_max: int) -> str:
    return irreps_text([(channels, degree, (-1) ** degree) for degree in range(l_max + 1)])


def _check(place: str, what: str, irreps: Any, expected: str) -> None:
    if isinstance(irreps, Record) and (given := irreps_text(parts_of(irreps))) != expected:
        raise InputError(f"{place} has the {what} {given[:80]}", hint=f"only {expected} can be converted")


def parts_of(irreps: Record) -> list[tuple[int, int, int]]:
    """(multiplicity, degree, parity) of irreps of e3nn."""
    parts = []
    for part in irreps.arguments[0]:
        multiplicity, irrep = part.arguments[0]
        degree, parity = irrep.arguments[0]
        parts.append((int(multiplicity), int(degree), int(parity)))
    return parts


def irreps_text(parts: Sequence[tuple[int, int, int]]) -> str:
    """(multiplicity, degree, parity) as e3nn writes them."""
    return "+".join(f"{n}x{degree}{'e' if parity == 1 else 'o'}" for n, degree, parity in parts)
