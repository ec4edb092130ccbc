"""What no structure may have: missing numbers, infinite numbers, two atoms on one spot."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pimlip_zoo.datasets.frame import LABELS, Frame
from pimlip_zoo.datasets.neighbour_list import complete_cell, neighbour_list
from pimlip_zoo.datasets.same_size import groups_of_alike
from pimlip_zoo.errors import InputError

SAME_SPOT = 1e-3
_MANY_ATOMS = 64
MAX_NUMBER = 118


def check_frame(frame: Frame, *, file: object, index: int, nan: str = "error") -> Frame:
    """The frame, when a potential can be trained on it.

    Args:
        frame: the structure.
        file: where it comes from, for messages.
        index: of the frame in the file.
        nan: ``missing`` turns NaN labels into no labels, ``error`` refuses them.

    Raises:
        InputError: for no atoms, unknown elements, NaN or infinite values, coinciding atoms, or a periodic
            direction without a cell vector.
    """
    place: dict[str, Any] = {"file": file, "frame": index}
    _check_geometry(frame, place)
    for key, weight in (("weight", frame.weight), *zip(LABELS, frame.label_weights, strict=True)):
        if not 0 <= weight < math.inf:
            raise InputError(f"the weight is {weight}", **place, key=key, hint="give a number >= 0")
    frame = _without_nan_labels(frame) if nan == "missing" else frame
    for key in LABELS:
        label = getattr(frame, key)
        if label is None or _finite(label):
            continue
        if nan == "missing" and not np.isinf(label).any():
            continue  # single unlabelled atoms
        raise InputError(
            f"{_first_bad(np.asarray(label), key)} is NaN or infinite",
            **place,
            key=key,
            hint="leave missing labels out, or read with ?nan=missing",
        )
    pair = coinciding_atoms(frame.positions, frame.cell, frame.pbc)
    if pair:
        raise InputError(f"atoms {pair[0]} and {pair[1]} are on one spot", **place, key="positions")
    return frame


def all_usable(frames: Sequence[Frame]) -> bool:
    """Whether :func:`check_frame` surely accepts all of them; False means that each has to be looked at.

    Only small molecules are ever accepted here: together they take a fraction of the time.
    """
    groups, others = groups_of_alike(frames)
    if others:
        return False
    for group in groups:
        members = [frames[i] for i in group.places]
        labels = [frame.energy for frame in members if frame.energy is not None]
        weights = np.array([(frame.weight, *frame.label_weights) for frame in members])
        if weights.min() < 0:
            return False
        arrays: list[Any] = [group.positions, np.array(labels), weights]
        arrays += [np.array(values) for key in ("forces", "stress", "cell") if (values := _all(members, key))]
        if not all(_finite(values) for values in arrays):
            return False
        elements = np.array([frame.numbers for frame in members])
        if elements.min() < 1 or elements.max() > MAX_NUMBER:
            return False
        square = group.squared_distances()
        n = square.shape[1]
        square.reshape(len(square), -1)[:, :: n + 1] = np.inf
        if square.min() < SAME_SPOT**2:
            return False
    return True


def _all(frames: Sequence[Frame], key: str) -> list[NDArray[np.float64]]:
    return [value for frame in frames if (value := getattr(frame, key)) is not None]


def _check_geometry(frame: Frame, place: dict[str, Any]) -> None:
    if len(frame.numbers) == 0:
        raise InputError("has no atoms", **place)
    if frame.numbers.min() < 1 or frame.numbers.max() > MAX_NUMBER:
        atom = int(np.argmax((frame.numbers < 1) | (frame.numbers > MAX_NUMBER)))
        raise InputError(f"atom {atom} has atomic number {frame.numbers[atom]}", **place, key="species")
    for key, values in (("positions", frame.positions), ("cell", frame.cell)):
        if not _finite(values):
            raise InputError(f"{_first_bad(values, key)} is NaN or infinite", **place, key=key)
    if frame.pbc.any():
        try:
            complete_cell(frame.cell, frame.pbc)
        except InputError as error:
            raise error.at(**place) from error


def coinciding_atoms(
    positions: NDArray[np.float64], cell: NDArray[np.float64], pbc: NDArray[np.bool_]
) -> tuple[int, int] | None:
    """Two atoms closer than 0.001 Å, periodic images included; None where there are none."""
    n = len(positions)
    if n < 2:
        return None
    if n > _MANY_ATOMS:
        return _coinciding_in_large(positions, cell, pbc)
    delta = positions[:, None] - positions[None]
    if pbc.any():
        delta = _to_nearest_image(delta, cell, pbc)
    square = np.einsum("ijk,ijk->ij", delta, delta)
    square.flat[:: n + 1] = np.inf
    nearest = int(square.argmin())
    if square.flat[nearest] >= SAME_SPOT**2:
        return None
    i, j = sorted(divmod(nearest, n))
    return i, j


def _to_nearest_image(
    delta: NDArray[np.float64], cell: NDArray[np.float64], pbc: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Differences less whole lattice vectors: exact for atoms on one spot, which is all that is asked."""
    inverse = np.linalg.pinv(np.where(pbc[:, None], cell, 0.0))
    shift = np.rint(delta @ inverse)
    nearest: NDArray[np.float64] = delta - shift @ np.where(pbc[:, None], cell, 0.0)
    return nearest


def _coinciding_in_large(
    positions: NDArray[np.float64], cell: NDArray[np.float64], pbc: NDArray[np.bool_]
) -> tuple[int, int] | None:
    pairs, shift = neighbour_list(positions, cell, pbc, 0.5)
    delta = positions[pairs[1]] - positions[pairs[0]] + shift @ cell
    close = np.flatnonzero(np.linalg.norm(delta, axis=1) < SAME_SPOT)
    if not len(close):
        return None
    i, j = sorted(int(atom) for atom in pairs[:, close[0]])
    return i, j


def _without_nan_labels(frame: Frame) -> Frame:
    changes: dict[str, None] = {}
    for key in LABELS:
        label = getattr(frame, key)
        if label is None:
            continue
        missing = np.isnan(label)
        if missing.all() or (key == "stress" and missing.any()):
            changes[key] = None
    return replace(frame, **changes) if changes else frame  # type: ignore[arg-type]


def _finite(values: NDArray[np.float64] | float) -> bool:
    """A sum is finite only where all of its terms are; several times faster than looking at each."""
    return math.isfinite(np.add.reduce(values, axis=None))


def _first_bad(values: NDArray[np.float64], key: str) -> str:
    if values.ndim == 0:
        return "it"
    row = int(np.argmax(~np.isfinite(values).all(axis=-1)))
    return f"{'row' if key in ('cell', 'stress') else 'atom'} {row}"
