"""Frames for the tests of this folder: random but physical enough to be read."""

from __future__ import annotations

import numpy as np

from pimlip_zoo.datasets.frame import Frame


def molecule(seed=0, n=5, **changes):
    """Atoms on a jittered grid, far enough from each other."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.arange(4.0)] * 3), axis=-1).reshape(-1, 3)[:n] * 1.4
    fields = {
        "numbers": rng.choice([1, 6, 8], n),
        "positions": grid + 0.1 * rng.normal(size=(n, 3)),
        "energy": float(rng.normal() - 100.0),
        "forces": rng.normal(size=(n, 3)),
    }
    return Frame(**{**fields, **changes})


def crystal(seed=0, n=4, **changes):
    """The same with a skewed cell and stress."""
    rng = np.random.default_rng(seed + 1000)
    cell = 6.0 * np.eye(3) + 0.4 * rng.normal(size=(3, 3))
    stress = rng.normal(size=(3, 3))
    fields = {"cell": cell, "pbc": np.ones(3, dtype=bool), "stress": 0.01 * (stress + stress.T)}
    return molecule(seed, n, **{**fields, **changes})


def assert_same(a, b, tolerance=0.0):
    """Two frames are equal in everything but info."""
    np.testing.assert_array_equal(a.numbers, b.numbers)
    np.testing.assert_array_equal(a.pbc, b.pbc)
    for name in ("positions", "cell", "energy", "forces", "stress", "weight"):
        x, y = getattr(a, name), getattr(b, name)
        assert (x is None) == (y is None), name
        if x is not None:
            np.testing.assert_allclose(x, y, rtol=0, atol=tolerance, err_msg=name)
