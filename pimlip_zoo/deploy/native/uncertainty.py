"""What a native model needs to say how certain its forces are: other weights of its last layer.

Forces are linear in the last weights of the readouts. With a covariance ``C = sum_k d_k d_k^T`` of these weights the
variance of a force is ``sum_k |F(d_k) - F(0)|^2``, F the forces that the model has with other last weights. A file
with uncertainty holds, beside its weights, what differs in them for 0 and for each of the directions ``d_k``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pimlip_zoo.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from pimlip_zoo.compiled.native.program import Program
    from pimlip_zoo.models.potential import Potential

KEY = "uncertainty"
"""Of the metadata: ``K factor exponent quantile shared offset:bytes ...``, the last ones the parts of the weights.
Older files lack ``shared``, which is 0."""


class Directions(NamedTuple):
    """A posterior of the last layer: ``uncertainty = factor * sqrt(variance) ** exponent * s ** shared``.

    s is the root of the mean variance over all atoms of a structure.
    """

    rows: Tensor
    """(K, D)"""
    factor: float
    exponent: float
    quantile: float
    """This many uncertainties cover 90 % of the errors that it was calibrated on."""
    shared: float = 0.0


@dataclass(frozen=True)
class OtherWeights:
    """What a file says of it."""

    factor: float
    exponent: float
    quantile: float
    parts: tuple[tuple[int, int], ...]
    """Offset and number of bytes of what is replaced in the weights."""
    content: bytes
    """K + 1 times all parts: with last weights of 0, then with each direction."""
    shared: float = 0.0

    @property
    def row_bytes(self) -> int:
        """Of all parts."""
        return sum(size for _, size in self.parts)

    @property
    def directions(self) -> int:
        """K."""
        return len(self.content) // self.row_bytes - 1

    @property
    def text(self) -> str:
        """For the metadata."""
        numbers = f"{self.directions} {self.factor!r} {self.exponent!r} {self.quantile!r} {self.shared!r}"
        return " ".join([numbers, *(f"{first}:{size}" for first, size in self.parts)])

    @classmethod
    def read(cls, text: str, content: bytes, weights: int) -> OtherWeights:
        """What :attr:`text` and the content are.

        Args:
            text: of the metadata.
            content: of the file.
            weights: bytes of the weights that are replaced.

        Raises:
            InputError: when they do not fit.
        """
        try:
            count, factor, exponent, quantile, *parts = text.split()
            shared = float(parts.pop(0)) if ":" not in parts[0] else 0.0
            places = tuple((int(a), int(b)) for a, b in (part.split(":") for part in parts))
            made = cls(float(factor), float(exponent), float(quantile), places, content, shared)
            whole = len(content) == (int(count) + 1) * made.row_bytes > 0 and int(count) > 0
            inside = all(first >= 0 and 0 < size <= weights - first for first, size in places)
            ends = [(first, first + size) for first, size in sorted(places)]
            apart = all(end <= first for (_, end), (first, _) in pairwise(ends))
        except (ValueError, IndexError) as error:
            raise InputError("what it says of its uncertainty is damaged", hint="export it again") from error
        numbers = np.isfinite([made.factor, made.exponent, made.quantile, made.shared]).all()
        possible = (
            numbers and made.factor > 0.0 and min(made.exponent, made.shared) >= 0.0 and made.quantile > 0.0
        )
        if not (whole and inside and apart and possible):
            raise InputError("what it says of its uncertainty is damaged", hint="export it again")
        return made

    def apply(self, weights: NDArray[np.uint8], row: int) -> None:
        """Replace the parts by those of a row: 0, or 1 to K."""
        first = row * self.row_bytes
        for offset, size in self.parts:
            weights[offset : offset + size] = np.frombuffer(self.content[first : first + size], np.uint8)
            first += size


def other_weights(
    potential: Potential,
    directions: Directions,
    weights: bytes,
    record: Callable[[], Program],
) -> OtherWeights:
    """Find what differs.

    Args:
        potential: whose last weights are changed for a while.
        directions: for its last layer.
        weights: of the file, with the last layer as trained.
        record: writes the potential down as a program again.

    Raises:
        InputError: when the directions do not fit the potential.
    """
    import torch

    from pimlip_zoo.compiled.native.source import constant_offsets, weights_bytes
    from pimlip_zoo.models.readouts import last_weights, set_last_weights

    trained = last_weights(potential.model)
    if directions.rows.shape[1] != len(trained):
        raise InputError("the uncertainty is of another potential", key=KEY)
    made: list[Program] = []
    try:
        for row in (torch.zeros_like(trained), *directions.rows.double()):
            set_last_weights(potential.model, row)
            made.append(record())
    finally:
        set_last_weights(potential.model, trained)
    all_bytes = [weights_bytes(program) for program in made]
    if any(len(each) != len(weights) for each in all_bytes):
        raise InputError("the program depends on its last weights", key=KEY)
    offsets, _ = constant_offsets(made[0])
    sizes = {n: value.numel() * value.element_size() for n, value in made[0].constants.items()}
    parts = []
    for number, first in sorted(offsets.items(), key=lambda item: item[1]):
        here = slice(first, first + sizes[number])
        if any(each[here] != weights[here] for each in all_bytes):
            parts.append((first, sizes[number]))
    content = b"".join(each[first : first + size] for each in all_bytes for first, size in parts)
    of_all = (directions.factor, directions.exponent, directions.quantile)
    return OtherWeights(*of_all, tuple(parts), content, directions.shared)
