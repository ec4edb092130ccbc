"""What a file of structures is to the rest of the package."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from pimlip_zoo.datasets.frame import Frame
from pimlip_zoo.datasets.readers.labels import LabelFinder
from pimlip_zoo.errors import InputError, reason_of

Item = tuple[int, "Frame | InputError"]
"""Index of a frame in its file, and the frame or what is wrong with it."""

ALL_FRAMES = range(sys.maxsize)


class FrameFile(Protocol):
    """A file, folder or built-in set of structures.

    A frame that cannot be read is handed out as the error, so that the caller decides whether it ends the
    reading; what makes the rest of the file unreadable, too, is raised. A class whose ``count`` reads all of
    the file says so by ``counts_cheaply = False``.
    """

    finder: LabelFinder

    def count(self) -> int:
        """How many frames there are, found with as little reading as the format allows."""
        ...

    def read(self, window: range) -> Iterator[Item]:
        """The frames of a window of indices, in order."""
        ...


def item_of(file: object, index: int, make: Callable[..., Frame], *args: Any) -> Item:
    """The frame that a function makes, or what is wrong with it: parsers throw anything at damaged bytes.

    Args:
        file: where it comes from, for the message.
        index: of the frame.
        make: called with ``args``.
        args: for it.
    """
    try:
        return index, make(*args)
    except InputError as error:
        return index, error
    except Exception as error:  # noqa: BLE001
        return index, InputError(f"cannot be read: {reason_of(error)}", file=file, frame=index)
