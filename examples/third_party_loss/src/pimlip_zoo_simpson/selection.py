"""An acquisition: which of many structures to label next."""

from __future__ import annotations

import numpy as np

from pimlip_zoo.labelling.acquisition import Candidates, Choice, register_acquisition


@register_acquisition("stretched")
def choose_stretched(candidates: Candidates, count: int, rng: np.random.Generator) -> list[Choice]:  # noqa: ARG001
    """Those whose atoms lie farthest apart: the radius of gyration, the largest first."""
    candidates.unit = "Å"
    radii = np.array(
        [frame.positions.std(axis=0) @ frame.positions.std(axis=0) for frame in candidates.frames]
    )
    return [Choice(int(index), float(radii[index] ** 0.5)) for index in np.argsort(-radii)[:count]]
