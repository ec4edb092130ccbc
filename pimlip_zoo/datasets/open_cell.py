"""Cells that are filled with atoms and are not periodic: liquids and crystals that were read as clusters."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

log = logging.getLogger("pimlip_zoo")

_MANY = 12
"""Atoms; fewer do not tell a piece of matter from a molecule in a box."""
_DENSEST = 4.0
"""Å³ an atom; smaller cells mean nothing, such as one of 1 Å that some programs write for molecules."""
_GAP = 3.5
"""Å without an atom along a direction that a filled cell has at most."""
_UNSTATED = {"eon": "eOn", "sys": "Qball"}
"""Formats with a cell that do not say where it is periodic, by ASE's names; it takes them for clusters."""

MEANS = "a cell that their atoms fill, but pbc is off where it ends: atoms at its faces have no neighbours beyond them"
HINT = 'a liquid or crystal? write pbc="T T T" into the file; a cluster needs no cell'


def fills_open_cell(
    positions: NDArray[np.float64], cell: NDArray[np.float64], pbc: NDArray[np.bool_]
) -> bool:
    """Whether atoms fill a cell up to its open faces, as a piece of a liquid or crystal does without its images.

    Vacuum around a molecule, or above a slab, is wider than the gap that a neighbour over the face would leave.

    Args:
        positions: (N, 3) Å.
        cell: (3, 3) Å.
        pbc: (3,).
    """
    n = len(positions)
    if pbc.all() or n < _MANY or abs(float(np.linalg.det(cell))) < _DENSEST * n:
        return False
    inverse = np.linalg.inv(cell)
    heights = 1.0 / np.linalg.norm(inverse, axis=0)
    inside = np.sort((positions @ inverse)[:, ~pbc] % 1.0, axis=0)
    empty = np.diff(inside, axis=0, append=inside[:1] + 1.0).max(axis=0) * heights[~pbc]
    return bool((empty < _GAP).all())


def say_unstated(path: str | Path, kind: str | None) -> bool:
    """Say of a file whose format has a cell, and no word for periodic directions, that it is read without any.

    Args:
        path: the file.
        kind: its format, as ASE calls it.

    Returns:
        Whether it is one.
    """
    if kind not in _UNSTATED:
        return False
    log.warning(
        '%s: taken as not periodic: a file of %s does not say (write it as extxyz, with pbc="T T T")',
        *(path, _UNSTATED[kind]),
    )
    return True
