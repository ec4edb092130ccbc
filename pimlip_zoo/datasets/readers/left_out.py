"""Saying what a file has of its structures and frames have no place for, where that is handed on."""

from __future__ import annotations

import logging
from collections.abc import Iterable

log = logging.getLogger("pimlip_zoo")

_OF_STRUCTURES = ("constraints", "velocities", "tags", "masses", "charges", "magnetic moments")
"""What else there is, such as dipoles, was computed for them."""


def say_not_kept(spec: str, kinds: Iterable[str], so: str = "") -> None:
    """One line of what is not handed on; none where that is nothing.

    Args:
        spec: where the structures are from.
        kinds: of :func:`~pimlip_zoo.datasets.readers.read_frames`.
        so: what follows from it.
    """
    there = set(kinds)
    lost = [kind for kind in _OF_STRUCTURES if kind in there]
    if lost:
        log.warning("%s: not kept: %s%s", spec, ", ".join(lost), f"; {so}" if so else "")
