"""Readers: from what users have to frames in eV and Å.

One function, :func:`read_frames`, for every DATA specification; one class per family of files below it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from pimlip_zoo.datasets.frame import Frame
from pimlip_zoo.datasets.readers.checks import check_frame
from pimlip_zoo.datasets.readers.file import FrameFile, Item
from pimlip_zoo.datasets.readers.source import format_names, open_source, window_of
from pimlip_zoo.datasets.readers.spec import DataSource, ReadOptions, parse_spec
from pimlip_zoo.errors import InputError

__all__ = [
    "DataSource",
    "FrameFile",
    "Item",
    "ReadOptions",
    "check_frame",
    "checked",
    "format_names",
    "load_frames",
    "open_source",
    "parse_spec",
    "read_frames",
    "read_window",
    "window_of",
]


def read_frames(spec: str, *, on_bad: Callable[[InputError], None] | None = None) -> Iterator[Frame]:
    """The frames of a DATA specification, one after the other.

    Args:
        spec: ``builtin:NAME/SPLIT``, a path, ``PATH@START:STOP:STEP``, ``PATH?energy=kcal/mol&...``, several
            of them joined by commas; see ``docs/data.md``.
        on_bad: called with what is wrong with a frame, which is then left out; without it the first such
            frame ends the reading.

    Raises:
        InputError: for a missing or unreadable file, a frame that cannot be used, a named key that no frame
            has, or no frames at all.

    >>> len(list(read_frames("builtin:ethanol-gfn2/train@:10")))
    10
    """
    empty = True
    for source in parse_spec(spec):
        file = open_source(source)
        for frame in read_window(source, file, window_of(source.frames, file), on_bad=on_bad):
            empty = False
            yield frame
        file.finder.check_requested()
    if empty:
        raise InputError("there are no frames", file=spec)


def load_frames(spec: str, *, on_bad: Callable[[InputError], None] | None = None) -> list[Frame]:
    """All frames of a DATA specification; see :func:`read_frames`.

    >>> load_frames("builtin:ethanol-gfn2/train")[0].forces.shape
    (9, 3)
    """
    return list(read_frames(spec, on_bad=on_bad))


def read_window(
    source: DataSource,
    file: FrameFile,
    window: range,
    *,
    on_bad: Callable[[InputError], None] | None = None,
) -> Iterator[Frame]:
    """The checked frames of a window of an opened source."""
    for _, item in checked(source, file.read(window)):
        if not isinstance(item, InputError):
            yield item
        elif on_bad is None:
            raise item
        else:
            on_bad(item)


def checked(source: DataSource, items: Iterator[Item]) -> Iterator[Item]:
    """The chosen frames of a source that can be used, and for each of the others what is wrong with it."""
    for index, item in items:
        if source.indices is not None and index not in source.indices:
            continue
        if isinstance(item, InputError):
            yield index, _located(item, source.path, index)
            continue
        try:
            frame = check_frame(item, file=source.path, index=index, nan=source.options.nan)
        except InputError as error:
            yield index, error
            continue
        yield index, frame


def _located(error: InputError, file: str, index: int) -> InputError:
    """The error with the place of the frame, where the one who found it did not know the place."""
    if error.file is not None:
        return error
    return InputError(error.message, file=file, frame=index, key=error.key, mend=error.mend)
