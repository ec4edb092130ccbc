"""n2p2/RuNNer ``input.data``: blocks of lattice, atom, energy lines between ``begin`` and ``end``."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from pimlip_zoo.datasets.frame import Frame
from pimlip_zoo.datasets.readers.file import ALL_FRAMES, Item, item_of
from pimlip_zoo.datasets.readers.labels import LabelFinder
from pimlip_zoo.datasets.readers.spec import ReadOptions
from pimlip_zoo.errors import InputError, did_you_mean

_KNOWN = {"comment", "lattice", "atom", "energy", "charge"}


class N2p2File:
    """The format has no units of its own: the user names them (often Bohr and Hartree)."""

    def __init__(self, path: str, options: ReadOptions) -> None:
        self.path = path
        self.finder = LabelFinder(options, file=path, energy=None, length=None)

    def count(self) -> int:
        """Blocks in the file."""
        with open(self.path, encoding="utf-8") as file:  # noqa: PTH123
            return sum(1 for line in file if line.split(maxsplit=1)[:1] == ["begin"])

    def read(self, window: range = ALL_FRAMES) -> Iterator[Item]:
        """Frames of the window."""
        for index, lines in enumerate(self._blocks()):
            if index >= window.stop:
                return
            if index in window:
                yield item_of(self.path, index, self._frame, lines, index)

    def _blocks(self) -> Iterator[list[list[str]]]:
        block: list[list[str]] | None = None
        with open(self.path, encoding="utf-8") as file:  # noqa: PTH123
            for number, line in enumerate(file, start=1):
                words = line.split()
                if not words:
                    continue
                if words[0] == "begin":
                    if block is not None:
                        raise InputError(f"the block before line {number} has no end", file=self.path)
                    block = []
                elif words[0] == "end" and block is not None:
                    yield block
                    block = None
                elif block is not None:
                    block.append(words)
                else:
                    raise InputError(f"line {number} stands outside begin and end", file=self.path)
        if block is not None:
            raise InputError("the last block has no end", file=self.path)

    def _frame(self, lines: list[list[str]], index: int) -> Frame:
        from ase.data import atomic_numbers

        unknown = sorted({words[0] for words in lines} - _KNOWN)
        if unknown:
            raise InputError(
                f"has a line that begins with {unknown[0][:40]!a}",
                file=self.path,
                frame=index,
                hint=did_you_mean(unknown[0][:40], sorted(_KNOWN)),
            )
        atoms = [words for words in lines if words[0] == "atom"]
        lattice = [words[1:4] for words in lines if words[0] == "lattice"]
        if not atoms:
            raise InputError("has no atoms", file=self.path, frame=index)
        if len(lattice) not in (0, 3):
            raise InputError(
                f"has {len(lattice)} lattice vectors", file=self.path, frame=index, key="lattice"
            )
        labels: dict[str, object] = {}
        for name in ("energy", "charge"):
            values = [words[1] for words in lines if words[0] == name]
            if len(values) > 1:
                raise InputError(f"has {len(values)} lines `{name}`", file=self.path, frame=index, key=name)
            if values:
                labels[name] = float(values[0])
        with_forces = [len(words) >= 10 for words in atoms]
        if all(with_forces):
            labels["forces"] = np.array([words[7:10] for words in atoms], dtype=np.float64)
        elif any(with_forces):
            raise InputError(
                f"atom {with_forces.index(False)} has no forces, others have", file=self.path, frame=index
            )
        comment = next((" ".join(words[1:]) for words in lines if words[0] == "comment"), None)
        return self.finder.frame(
            np.array([atomic_numbers[words[4]] for words in atoms]),
            np.array([words[1:4] for words in atoms], dtype=np.float64),
            np.array(lattice, dtype=np.float64) if lattice else None,
            bool(lattice),
            [("file", {**labels, "comment": comment})],
            index=index,
            also=["charges"] if any(float(words[5]) for words in atoms if len(words) > 5) else [],
        )
