"""Ghost atoms and neighbour lists as LAMMPS has them, for stand-ins of pair styles that are not built here."""

from __future__ import annotations

import numpy as np
from toys import SPECIES


def ghosts(atoms, cutoff):
    """Local atoms, then periodic images within the cutoff of the box, as LAMMPS has them: x, tag (from 1), type."""
    cell, pbc = np.array(atoms.cell), np.array(atoms.pbc)
    heights = 1.0 / np.linalg.norm(np.linalg.inv(cell), axis=0)
    reach = np.where(pbc, np.ceil(cutoff / heights), 0).astype(int)
    x, tag = [atoms.positions], [np.arange(1, len(atoms) + 1)]
    for shift in np.ndindex(*(2 * reach + 1)):
        n = np.array(shift) - reach
        if n.any():
            x.append(atoms.positions + n @ cell)
            tag.append(np.arange(1, len(atoms) + 1))
    x, tag = np.concatenate(x), np.concatenate(tag)
    types = np.array([SPECIES.index(s) for s in atoms.get_chemical_symbols()])[tag - 1]
    return x, tag, types


def pairs_within(x, types, nlocal, cutoff, per_type):
    """Edges (local centre, any neighbour) as the pair style lists them."""
    cutoffs = np.full((len(SPECIES), len(SPECIES)), cutoff) if per_type is None else per_type
    edges = []
    for i in range(nlocal):
        distance = np.linalg.norm(x - x[i], axis=1)
        near = (distance <= cutoffs[types[i], types]) & (np.arange(len(x)) != i)
        edges += [(i, j) for j in np.flatnonzero(near)]
    return np.array(edges, dtype=np.int64).reshape(-1, 2).T
