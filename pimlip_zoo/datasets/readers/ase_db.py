"""ASE databases (SQLite or JSON), also in the form that SchNetPack writes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from pimlip_zoo.datasets.frame import Frame
from pimlip_zoo.datasets.readers.file import ALL_FRAMES, Item, item_of
from pimlip_zoo.datasets.readers.labels import INITIAL, LabelFinder
from pimlip_zoo.datasets.readers.spec import ReadOptions
from pimlip_zoo.errors import InputError, reading

_NOT_KEPT = (
    *("momenta", "tags", "masses", "charges", "magmom", "magmoms", "dipole", "energies", "stresses"),
)


class AseDatabase:
    """Rows in the order of their ids; labels in results, key-value pairs and ``data``.

    SchNetPack's metadata name the units of its properties: they are used where the user names none.
    """

    def __init__(self, path: str, options: ReadOptions) -> None:
        self.path = path
        self._database = self._connect()
        try:
            # Counting comes first: it connects, which asking ASE 3.28 and older for metadata does not.
            self._count = int(self._database.count())
            metadata = dict(self._database.metadata)
        except Exception as error:
            raise InputError(f"is no ASE database: {error}", file=path) from error
        units = metadata.get("_property_unit_dict") or {}
        by_kind = {key.lower(): unit for key, unit in units.items() if isinstance(unit, str)}
        self.finder = LabelFinder(
            options,
            file=path,
            energy=by_kind.get(options.energy_key or "energy", "eV"),
            length=metadata.get("_distance_unit") or "Å",
            forces=by_kind.get(options.forces_key or "forces"),
        )

    def count(self) -> int:
        """Rows of the database."""
        return self._count

    def read(self, window: range = ALL_FRAMES) -> Iterator[Item]:
        """Rows of the window."""
        stop = min(window.stop, self._count)
        if window.start >= stop:
            return
        with reading(self.path), self._held():
            rows = self._database.select(offset=window.start, limit=stop - window.start)
            for index, row in enumerate(rows, start=window.start):
                if index in window:
                    yield item_of(self.path, index, self._frame, row, index)

    def _frame(self, row: Any, index: int) -> Frame:
        results = {key: row.get(key) for key in ("energy", "forces", "stress", "free_energy") if key in row}
        initial = {key: row.get(key) for key in INITIAL if key in row}
        return self.finder.frame(
            row.numbers,
            row.positions,
            row.cell,
            row.pbc,
            [
                ("calculator", results),
                ("key_value_pairs", row.key_value_pairs),
                ("data", dict(row.data or {})),
                ("arrays", initial),
            ],
            index=index,
            also=[key for key in _NOT_KEPT if key in row] + ["constraints"] * bool(row.constraints),
        )

    def _held(self) -> AbstractContextManager[Any]:
        """One connection for all rows: ASE's SQLite class otherwise makes one for each."""
        held: AbstractContextManager[Any] = (
            self._database if hasattr(self._database, "managed_connection") else nullcontext()
        )
        return held

    def _connect(self) -> Any:
        from ase.db import connect

        try:
            return connect(self.path)
        except Exception as error:
            raise InputError(f"cannot be opened: {error}", file=self.path) from error
