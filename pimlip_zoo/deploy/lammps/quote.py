"""Words of LAMMPS input scripts: paths with spaces and the like in quotes."""

from __future__ import annotations

import os
import re

from pimlip_zoo.errors import InputError

_PLAIN = re.compile(r"[\w./+:@%,=~^-]+", re.ASCII)


def lammps_word(path: str | os.PathLike[str]) -> str:
    """A path as one word of an input script.

    Raises:
        InputError: for a path that LAMMPS has no way of writing.

    >>> lammps_word("my models/ethanol.pimlip")
    '"my models/ethanol.pimlip"'
    """
    text = os.fspath(path)
    if _PLAIN.fullmatch(text):
        return text
    for quote in ('"', "'"):
        if quote not in text and text.isascii() and text.isprintable():
            return f"{quote}{text}{quote}"
    raise InputError(
        "LAMMPS reads no paths with letters beyond ASCII, line breaks, or both kinds of quotes",
        file=text,
        hint="rename it, or take a place without them",
    )
