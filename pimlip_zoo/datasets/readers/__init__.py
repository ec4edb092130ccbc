"""Readers: from what users have to frames in eV and Å.

One function, :func:`read_frames`, for every DATA specification; one class per family of files below it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from pimlip_zoo.datasets.frame import Frame
from pimlip_zoo.datasets.readers.checks import all_usable, check_frame
from pimlip_zoo.datasets.readers.file import ALL_FRAMES, FrameFile, Item
from pimlip_zoo.datasets.readers.source import check_chosen, open_source, window_of
from pimlip_zoo.datasets.readers.spec import DataSource, ReadOptions, files_of, parse_spec
from pimlip_zoo.errors import InputError, reading

__all__ = [
    "DataSource",
    "FrameFile",
    "Item",
    "ReadOptions",
    "all_usable",
    "check_chosen",
    "check_frame",
    "checked",
    "files_of",
    "load_frames",
    "open_source",
    "parse_spec",
    "read_frames",
    "read_window",
    "window_of",
]


_PART_ITEMS, _PART_ATOMS = 256, 10_000


def read_frames(
    spec: str, *, on_bad: Callable[[InputError], None] | None = None, not_kept: set[str] | None = None
) -> Iterator[Frame]:
    """The frames of a DATA specification, one after the other.

    Args:
        spec: ``builtin:NAME/SPLIT``, a path, ``PATH@START:STOP:STEP``, ``PATH?energy=kcal/mol&...``, several
            of them joined by commas; see ``docs/guide/data.md``.
        on_bad: called with what is wrong with a frame, which is then left out; without it the first such
            frame ends the reading.
        not_kept: gets the kinds of what the files say of structures and frames have no place for.

    Raises:
        InputError: for a missing or unreadable file, a frame that cannot be used, a named key that no frame
            has, or no frames at all.

    >>> len(list(read_frames("builtin:ethanol-gfn2/train@:10")))
    10
    """
    empty, first = True, None

    def bad(error: InputError) -> None:
        nonlocal first
        first = first or error
        assert on_bad is not None
        on_bad(error)

    for source in parse_spec(spec):
        file = open_source(source)
        window = window_of(source.frames, file)
        if source.whole is not None and getattr(file, "counts_cheaply", True):
            with reading(source.path):
                check_chosen(source, file.count())
        for frame in read_window(source, file, window, on_bad=bad if on_bad else None):
            empty = False
            yield frame
        file.finder.check_requested()
        if not_kept is not None:
            not_kept |= file.finder.not_kept
    if empty:
        said = f"no frame can be used; the first: {first}" if first else "there are no frames"
        raise InputError(said, file=spec)


def load_frames(
    spec: str, *, on_bad: Callable[[InputError], None] | None = None, not_kept: set[str] | None = None
) -> list[Frame]:
    """All frames of a DATA specification; see :func:`read_frames`.

    >>> load_frames("builtin:ethanol-gfn2/train")[0].forces.shape
    (9, 3)
    """
    return list(read_frames(spec, on_bad=on_bad, not_kept=not_kept))


def read_window(
    source: DataSource,
    file: FrameFile,
    window: range,
    *,
    on_bad: Callable[[InputError], None] | None = None,
) -> Iterator[Frame]:
    """The checked frames of a window of an opened source."""
    for _, item in checked(source, file.read(window), window):
        if not isinstance(item, InputError):
            yield item
        elif on_bad is None:
            raise item
        else:
            on_bad(item)


def checked(source: DataSource, items: Iterator[Item], window: range = ALL_FRAMES) -> Iterator[Item]:
    """The chosen frames of a source that can be used, and for each of the others what is wrong with it.

    Args:
        source: the source.
        items: what its reader makes of the window.
        window: the indices that were asked for.

    Raises:
        InputError: for a source that cannot be read on, or that ends before a frame that was chosen by number.
    """
    items = _guarded(items, source.path)
    if source.indices is not None:
        items = _chosen(items, source, window)
    for part in _parts(items):
        frames = [item for _, item in part if not isinstance(item, InputError)]
        if len(frames) == len(part) and all_usable(frames):
            yield from part
            continue
        for index, item in part:
            if isinstance(item, InputError):
                yield index, _located(item, source.path, index)
                continue
            try:
                yield index, check_frame(item, file=source.path, index=index, nan=source.options.nan)
            except InputError as error:
                yield index, error


def _guarded(items: Iterator[Item], file: str) -> Iterator[Item]:
    with reading(file):
        yield from items


def _chosen(items: Iterator[Item], source: DataSource, window: range) -> Iterator[Item]:
    """The frames that a split chooses."""
    assert source.indices is not None
    count = 0
    for index, item in items:
        count = index + 1
        if index in source.indices:
            yield index, item
    check_chosen(source, max(count, window.start), window)


def _parts(items: Iterator[Item]) -> Iterator[list[Item]]:
    """Some items at a time; those before an error of the reader come first."""
    part: list[Item] = []
    atoms = 0
    try:
        for index, item in items:
            part.append((index, item))
            atoms += 0 if isinstance(item, InputError) else len(item.numbers)
            if atoms >= _PART_ATOMS or len(part) >= _PART_ITEMS:
                yield part
                part, atoms = [], 0
    except InputError:
        yield part
        raise
    yield part


def _located(error: InputError, file: str, index: int) -> InputError:
    """The error with the place of the frame, where the one who found it did not know the place."""
    return error if error.file is not None else error.at(file=file, frame=index)
