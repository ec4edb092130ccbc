"""Sets in the package's own forms: the built-in ones and LMDB stores."""

from __future__ import annotations

from collections.abc import Iterator

from pimlip_zoo.datasets.readers.file import ALL_FRAMES, Item, item_of
from pimlip_zoo.datasets.readers.labels import LabelFinder
from pimlip_zoo.datasets.readers.spec import ReadOptions
from pimlip_zoo.errors import InputError


class BuiltinSet:
    """``builtin:NAME/SPLIT``."""

    def __init__(self, path: str, options: ReadOptions) -> None:
        from pimlip_zoo.datasets.builtin import load_builtin

        _refuse_options(options, path)
        self.finder = LabelFinder(options, file=path)
        self._frames = load_builtin(path.removeprefix("builtin:"))

    def count(self) -> int:
        """Frames of the split."""
        return len(self._frames)

    def read(self, window: range = ALL_FRAMES) -> Iterator[Item]:
        """Frames of the window."""
        for index in range(window.start, min(window.stop, len(self._frames)), window.step):
            yield index, self._frames[index]


class StoreFile:
    """An LMDB store of the package: a file, or a folder of shards."""

    def __init__(self, path: str, options: ReadOptions) -> None:
        from pimlip_zoo.datasets.lmdb import FrameStore

        _refuse_options(options, path)
        self.finder = LabelFinder(options, file=path)
        self.store = FrameStore(path)

    def count(self) -> int:
        """Frames of the store."""
        return len(self.store)

    def read(self, window: range = ALL_FRAMES) -> Iterator[Item]:
        """Frames of the window."""
        for index in range(window.start, min(window.stop, len(self.store)), window.step):
            yield item_of(self.store.path, index, self.store.__getitem__, index)


def _refuse_options(options: ReadOptions, path: str) -> None:
    given = [
        name
        for name in ("energy", "length", "forces", "stress", "energy_key", "forces_key", "stress_key")
        if getattr(options, name)
    ]
    if given:
        raise InputError("its units and labels are fixed: eV and Å", file=path, key=given[0])
