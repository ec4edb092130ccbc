"""The one exception that means: the user can mend this.

The command line turns it into a single line on stderr and exit code 2.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from os import PathLike
from pathlib import Path

__all__ = ["InputError", "did_you_mean", "no_such_file"]

_FEW = 25


class InputError(ValueError):
    """Input that cannot be used; the message names where, what and how to mend it.

    Args:
        message: what is wrong, in one line.
        file: the file concerned.
        frame: index of the structure in that file, counted from 0.
        key: the label, option or field concerned.
        mend: what to do about it.
    """

    def __init__(
        self,
        message: str,
        *,
        file: object | None = None,
        frame: int | None = None,
        key: str | None = None,
        mend: str | None = None,
    ) -> None:
        place = [str(file)] if file is not None else []
        if frame is not None:
            place.append(f"frame {frame}")
        if key is not None:
            place.append(key)
        text = f"{', '.join(place)}: {message}" if place else message
        super().__init__(f"{text} ({mend})" if mend else text)
        self.message, self.file, self.frame, self.key, self.mend = message, file, frame, key, mend


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint for an unknown name: the nearest known ones, or all of them if they are few.

    >>> did_you_mean("nequp", ["nequip", "mace"])
    'did you mean nequip?'
    """
    names = sorted(known)
    if near := _nearest(name, names):
        return near
    if not names:
        return "none is known"
    return f"known: {', '.join(names)}" if len(names) <= _FEW else f"{len(names)} others are known"


def no_such_file(path: str | PathLike[str]) -> InputError:
    """What to raise for a file that is not there: it names files of its folder whose names are near."""
    folder = Path(path).parent
    if folder.is_dir():
        mend = _nearest(Path(path).name, sorted(entry.name for entry in folder.iterdir()))
    else:
        mend = f"the folder {folder} is not there"
    return InputError("no such file", file=path, mend=mend)


def _nearest(name: str, known: list[str]) -> str | None:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    return f"did you mean {' or '.join(near)}?" if near else None
