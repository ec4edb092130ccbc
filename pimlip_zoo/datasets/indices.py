"""Numbers that will be used as indices: whole, and within their bounds.

Python and numpy take -1 as the last one and cut 1.7 to 1: a file that holds either would be read as another structure.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pimlip_zoo.errors import InputError


def whole_numbers(
    values: ArrayLike,
    what: str,
    *,
    least: int | None = None,
    count: int | None = None,
    file: object | None = None,
    frame: int | None = None,
    key: str | None = None,
) -> NDArray[np.int64]:
    """The values as integers.

    Args:
        values: of any shape and type.
        what: one of them is, for the message: "type", "index".
        least: the smallest that is allowed; None for no bound.
        count: how many there are to choose from, so that ``count - 1`` is the largest; None for no bound.
        file: for the message.
        frame: for the message.
        key: for the message.

    Raises:
        InputError: for what is no whole number, or outside the bounds.

    >>> whole_numbers([0.0, 2.0], "type", least=0, count=3)
    array([0, 2])
    """
    place: dict[str, Any] = {"file": file, "frame": frame, "key": key}
    given = np.asarray(values)
    if given.size == 0:
        return np.zeros(given.shape, dtype=np.int64)
    if given.dtype.kind not in "iuf":
        raise InputError(f"holds no whole numbers but {given.dtype}", **place)
    if given.dtype.kind == "f":
        given = given.astype(np.float64)
        broken = given[~(np.isfinite(given) & (given == np.rint(given)) & (np.abs(given) < 2**53))]
        if broken.size:
            raise InputError(f"{what} {broken.flat[0]} is no whole number", **place)
    if least is not None and given.min() < least:
        raise InputError(f"{what} {given.min():.0f} is less than {least}", **place)
    if count is not None and given.max() >= count:
        raise InputError(f"{what} {given.max():.0f} is too large: there are {count}", **place)
    return given.astype(np.int64)
