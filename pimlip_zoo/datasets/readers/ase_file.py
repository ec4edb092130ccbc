"""Everything else that ASE reads: trajectories, OUTCAR, vasprun.xml, and dozens more."""

from __future__ import annotations

import logging
import lzma
import zlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from pimlip_zoo.datasets.frame import Frame
from pimlip_zoo.datasets.open_cell import say_unstated
from pimlip_zoo.datasets.readers.convergence import unconverged_in
from pimlip_zoo.datasets.readers.file import ALL_FRAMES, Item, item_of
from pimlip_zoo.datasets.readers.labels import INITIAL, LabelFinder
from pimlip_zoo.datasets.readers.lammps_types import format_of, is_dump, say_guessed, told_to_ase
from pimlip_zoo.datasets.readers.spec import ReadOptions
from pimlip_zoo.errors import InputError, reason_of

if TYPE_CHECKING:
    from ase import Atoms

log = logging.getLogger("pimlip_zoo")


class AseFile:
    """A file through :func:`ase.io.iread`, which converts units to eV and Å."""

    counts_cheaply = False

    def __init__(self, path: str, options: ReadOptions) -> None:
        self.path = path
        self.finder = LabelFinder(options, file=path)
        kind = None if options.format in (None, "ase") else options.format
        self._told = {"format": kind, **told_to_ase(path, kind)}
        named = [name for name in ("energy", "length", "forces") if getattr(options, name)]
        self._units_named = bool(named)
        if named and "units" in self._told:
            raise InputError(
                f"says itself that its units are {self._told['units']}",
                file=path,
                key=named[0],
                hint="name none",
            )

    def count(self) -> int:
        """Frames in the file; all of it is read."""
        return sum(1 for _ in self.read())

    def read(self, window: range = ALL_FRAMES) -> Iterator[Item]:
        """Frames of the window.

        Raises:
            InputError: where ASE cannot read on.
        """
        unconverged = self._unconverged()
        say_guessed(self.path, self._told, units=self._units_named)
        say_unstated(self.path, self._told["format"] or format_of(self.path))
        for index, atoms in enumerate(self._iterate()):
            if index >= window.stop:
                return
            if index not in window:
                continue
            if index in unconverged:
                yield (
                    index,
                    InputError(
                        "the SCF of this step did not converge",
                        file=self.path,
                        frame=index,
                        hint="leave it out: pimlip-zoo data convert --skip-bad",
                    ),
                )
                continue
            yield item_of(self.path, index, frame_from_atoms, atoms, self.finder, index)

    def _unconverged(self) -> set[int]:
        """Structures whose labels are no results; of what cannot be told apart, one line."""
        try:
            found = unconverged_in(self.path)
        except (OSError, EOFError, lzma.LZMAError, zlib.error):  # ASE says it
            return set()
        if found is None:
            return set()
        if found.others:
            log.warning(
                "%s: %d SCFs of this output of %s did not converge; of which structures is not known, and their labels "
                "are read like all others",
                *(self.path, found.others, found.program),
            )
        if found.unknown:
            log.warning(
                "%s: does not say its EDIFF, and so not whether its SCFs converged; its labels are read as if they had",
                self.path,
            )
        return found.steps

    def _iterate(self) -> Iterator[Atoms]:
        from ase.io import iread
        from ase.io.formats import UnknownFileTypeError

        index = 0
        try:
            for atoms in iread(self.path, index=":", **self._told):
                if is_dump(self._told) and atoms.calc is not None:
                    atoms.calc.results.pop("energy", None)
                yield atoms
                index += 1
        except InputError:
            raise
        except UnknownFileTypeError as error:
            raise InputError(
                "is of no known format", file=self.path, hint="name it with ?format=, as ASE calls it"
            ) from error
        except Exception as error:
            raise InputError(f"cannot be read: {reason_of(error)}", file=self.path, frame=index) from error


def frame_from_atoms(atoms: Atoms, finder: LabelFinder, index: int) -> Frame:
    """ASE atoms as a frame, with labels from calculator results, info and arrays.

    Raises:
        InputError: for labels of the wrong shape, or places that disagree.
    """
    results: Mapping[str, Any] = getattr(atoms.calc, "results", None) or {}
    arrays = {
        key: value
        for key, value in atoms.arrays.items()
        if key not in ("numbers", "positions")
        and (key in INITIAL or np.any(value != np.zeros((), value.dtype)))
    }
    return finder.frame(
        atoms.numbers,
        atoms.positions,
        atoms.cell.array,
        atoms.pbc,
        [("calculator", results), ("info", atoms.info), ("arrays", arrays)],
        index=index,
        also=["constraints"] if atoms.constraints else [],
    )
