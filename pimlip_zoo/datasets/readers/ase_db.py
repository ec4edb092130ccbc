"""ASE databases (SQLite or JSON), also in the form that SchNetPack writes."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from pimlip_zoo.datasets.frame import Frame
from pimlip_zoo.datasets.readers.file import ALL_FRAMES, Item, item_of
from pimlip_zoo.datasets.readers.labels import INITIAL, LabelFinder, usual_label
from pimlip_zoo.datasets.readers.spec import ReadOptions
from pimlip_zoo.datasets.readers.sqlite_file import check_tables
from pimlip_zoo.datasets.readers.units import energy_unit, forces_unit, length_unit
from pimlip_zoo.errors import InputError, reading

log = logging.getLogger("pimlip_zoo")

_NOT_KEPT = (
    *("momenta", "tags", "masses", "charges", "magmom", "magmoms", "dipole", "energies", "stresses"),
)


class AseDatabase:
    """Rows in the order of their ids; labels in results, key-value pairs and ``data``.

    SchNetPack's metadata name the units of its properties: they are used where the user names none.
    """

    def __init__(self, path: str, options: ReadOptions) -> None:
        self.path = path
        check_tables(Path(path))
        self._database = self._connect()
        try:
            # Counting comes first: it connects, which asking ASE 3.28 and older for metadata does not.
            self._count = int(self._database.count())
            metadata = dict(self._database.metadata)
        except Exception as error:
            raise InputError(f"is no ASE database: {error}", file=path) from error
        units = metadata.get("_property_unit_dict") or {}
        if not isinstance(units, dict):
            raise InputError("names no units by property", file=path, key="_property_unit_dict")
        # SchNetPack's free energies are those of thermodynamics, at some temperature.
        self._no_labels = {"free_energy"} - {options.energy_key} if units else set()
        self.finder = LabelFinder(
            options,
            file=path,
            energy=self._stated(units, "energy", options.energy_key, options.energy) or "eV",
            length=self._text("_distance_unit", metadata.get("_distance_unit") or "Å", options.length),
            forces=self._forces_unit(units, options),
            stress=self._stated(units, "stress", options.stress_key, options.stress),
        )

        virial = self._stated(units, "virial", options.virial_key, None)
        if virial is not None and energy_unit(virial, file=path) != self.finder.energy_unit:
            raise InputError(
                f"its metadata say that it is in {virial}, and energies are not", file=path, key="virial"
            )

    def _stated(self, units: dict[str, Any], label: str, key: str | None, given: str | None) -> str | None:
        """The unit of a label by the metadata; None where they do not name one.

        Args:
            units: by the property's name.
            label: energy, forces or stress.
            key: the property that the user names; None: those that are found without.
            given: the unit that the user names, which counts.

        Raises:
            InputError: for several units, or what is none.
        """
        if given is not None or not units:
            return given
        named = [name for name in units if (usual_label(name) == label if key is None else name == key)]
        named = named or [name for name in units if key is not None and name.lower() == key.lower()]
        found = {name: self._text(name, units[name]) for name in named}
        if len({unit.casefold() for unit in found.values()}) > 1:
            said = ", ".join(f"{name} is in {unit}" for name, unit in found.items())
            raise InputError(
                f"its metadata say that {said}",
                file=self.path,
                key=label,
                hint=f"name the key and the unit: ?{label}_key=...&{label}=...",
            )
        if key is not None and not found:
            log.warning(
                "%s: its metadata do not name the unit of %s; name it if it is not the usual one: ?%s=...",
                *(self.path, key, label),
            )
        return next(iter(found.values()), None)

    def _forces_unit(self, units: dict[str, Any], options: ReadOptions) -> str | None:
        """The unit of forces, which has to fit where the user names others."""
        key = options.forces_key or options.gradient_key
        said = self._stated(units, "forces", key, options.forces)
        if said is None or options.forces or not (options.energy or options.length):
            return said
        named = energy_unit(options.energy or "eV", file=self.path) / length_unit(
            options.length or "Å", file=self.path
        )
        if not math.isclose(forces_unit(said, file=self.path), named, rel_tol=1e-6):
            raise InputError(
                f"its metadata say that forces are in {said}, which is not what you name of energies and lengths",
                file=self.path,
                key="forces",
                hint=f"name their unit, too: &forces={said}",
            )
        return said

    def _text(self, name: str, unit: Any, given: str | None = None) -> str:
        if given is not None:
            return given
        if not isinstance(unit, str):
            raise InputError(
                f"its metadata name the unit {unit!r}",
                file=self.path,
                key=name,
                hint="name it: ?energy=...&length=...&forces=...",
            )
        return unit

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
                ("key_value_pairs", self._labels(row.key_value_pairs)),
                ("data", self._labels(row.data or {})),
                ("arrays", initial),
            ],
            index=index,
            also=[
                *(key for key in _NOT_KEPT if key in row),
                *(key for key in self._no_labels if key in (row.data or {})),
                *["constraints"] * bool(row.constraints),
            ],
        )

    def _labels(self, content: Mapping[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in content.items() if key not in self._no_labels}

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
