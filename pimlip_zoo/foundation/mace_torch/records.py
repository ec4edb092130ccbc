"""Model files of ``mace-torch`` as records, without that package and without running what the files contain."""

from __future__ import annotations

from pathlib import Path

from pimlip_zoo.errors import InputError
from pimlip_zoo.foundation.objects import read_objects, state_of
from pimlip_zoo.foundation.unpickle import Record

__all__ = ["Record", "read_objects", "read_records", "state_of"]


def read_records(path: str | Path) -> Record:
    """The object that a file holds.

    Raises:
        InputError: when there is no such file or it is something else.
    """
    content = read_objects(path)
    if not isinstance(content, Record):
        raise InputError(
            f"holds a {type(content).__name__}, not a model",
            file=path,
            hint="give the .model file of mace-torch",
        )
    return content
