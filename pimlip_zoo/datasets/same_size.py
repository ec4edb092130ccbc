"""Small open structures of one size, looked at together: what numpy asks for each call is paid once for hundreds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pimlip_zoo.datasets.frame import Frame

_SMALL = 64
_DISTANCES = 1 << 20
"""Most distances held at once."""
_OPEN = bytes(3)


class Alike(NamedTuple):
    """Some frames with N atoms, not periodic."""

    places: list[int]
    """Where they stand among all frames."""
    positions: NDArray[np.float64]
    """(B, N, 3) Å."""

    def squared_distances(self) -> NDArray[np.float64]:
        """(B, N, N) Å²; zero between an atom and itself."""
        return squared_distances(self.positions)


def squared_distances(positions: NDArray[np.float64]) -> NDArray[np.float64]:
    """(B, N, 3) to (B, N, N), zero between an atom and itself."""
    result = np.zeros((*positions.shape[:2], positions.shape[1]))
    for axis in range(3):
        delta = positions[:, :, None, axis] - positions[:, None, :, axis]
        result += np.square(delta, out=delta)
    return result


def groups_of_alike(frames: Sequence[Frame], most_atoms: int = _SMALL) -> tuple[Iterator[Alike], list[int]]:
    """Frames of at most some atoms that can be looked at together, and the places of those that cannot."""
    sizes: dict[int, list[int]] = {}
    others: list[int] = []
    for place, frame in enumerate(frames):
        n = len(frame.numbers)
        if 0 < n <= most_atoms and frame.pbc.tobytes() == _OPEN and frame.positions.shape == (n, 3):
            sizes.setdefault(n, []).append(place)
        else:
            others.append(place)

    def cut() -> Iterator[Alike]:
        for n, places in sizes.items():
            most = max(_DISTANCES // (n * n), 1)
            for start in range(0, len(places), most):
                part = places[start : start + most]
                yield Alike(part, np.array([frames[i].positions for i in part], dtype=np.float64))

    return cut(), others
