"""Values to compare with: of a file that a person wrote, or of an earlier result."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pimlip_zoo.errors import InputError, did_you_mean
from pimlip_zoo.physics.property import PROPERTIES
from pimlip_zoo.yaml_file import read_yaml

log = logging.getLogger("pimlip_zoo")

_KEYS = ("value", "unit", "tolerance", "source")


@dataclass(frozen=True)
class Expected:
    """One value of the reference."""

    value: float | list[float]
    unit: str | None = None
    """None: that of the property."""
    tolerance: float | None = None
    """How far the value may be off, in the same unit."""
    source: str = ""


Reference = Mapping[str, Mapping[str, Mapping[str, Expected]]]
"""By structure, property and value; the structure ``""`` stands for every one."""


def read_reference(path: str | Path, structures: Mapping[str, Mapping[str, Any]]) -> Reference:
    """Reference values from a YAML file, or from the JSON that ``eval --physics`` wrote.

    A file has properties, or structures with properties in them::

        lattice: {a: 3.61}
        elastic:
          C11: {value: 168, unit: GPa, tolerance: 10, source: experiment}

    Args:
        path: the file.
        structures: those that are measured: their :func:`~pimlip_zoo.physics.examine.identity` by name.

    Raises:
        InputError: when it cannot be read, names a property that there is not, has a value that is no number, has
            nothing for any of the structures, or was measured for another structure of that name.
    """
    content = read_yaml(path)
    if not isinstance(content, Mapping) or not content:
        raise InputError("has no reference values", file=path, hint="write lattice: {a: 3.61}, for one")
    if isinstance(content.get("structures"), Mapping):
        return reference_of_result(content, source=str(path), structures=structures)
    known = PROPERTIES.all()
    if any(str(key).split(".")[0] in known for key in content):
        return {"": _properties(content, path, "")}
    tables: dict[str, Mapping[str, Mapping[str, Expected]]] = {}
    for name, inner in content.items():
        named = isinstance(inner, Mapping) and any(str(key).split(".")[0] in known for key in inner)
        if not named and (name not in structures or not isinstance(inner, Mapping)):
            near = did_you_mean(str(name), [*known, *structures])
            raise InputError("is neither a property nor a structure", file=path, key=str(name), hint=near)
        tables[str(name)] = _properties(inner, path, f"{name}.")
    if not set(tables) & set(structures):
        raise InputError(
            f"has values of {', '.join(tables)}, and none of {', '.join(structures)}",
            file=path,
            hint=did_you_mean(next(iter(tables)), [*structures, *known]),
        )
    return tables


def reference_of_result(
    result: Mapping[str, Any], *, source: str, structures: Mapping[str, Mapping[str, Any]] | None = None
) -> Reference:
    """What another potential, or an earlier version, was found to have.

    Args:
        result: as ``eval --physics`` writes it.
        source: what the values are from.
        structures: identities of those that are measured, by name; all if not given.

    Raises:
        InputError: when it has none of the structures, or another one of that name.
    """
    check_same(result, structures or {}, source)
    tables: dict[str, dict[str, dict[str, Expected]]] = {}
    for name, part in result["structures"].items():
        tables[name] = {
            kind: {
                value: Expected(entry["value"], entry["unit"], source=source)
                for value, entry in one.get("values", {}).items()
                if entry["value"] is not None
            }
            for kind, one in part["properties"].items()
            if one.get("values")
        }
    if structures is not None and not set(tables) & set(structures):
        raise InputError(
            f"has values of {', '.join(tables)}, and none of {', '.join(structures)}",
            file=source,
            hint="give the same --structure",
        )
    return tables


def check_same(
    result: Mapping[str, Any], structures: Mapping[str, Mapping[str, Any]], source: str | Path
) -> None:
    """Refuse a result that is of other structures under the names of these; say where one was moved or strained.

    Args:
        result: as ``eval --physics`` writes it.
        structures: their :func:`~pimlip_zoo.physics.examine.identity`, by name.
        source: what the result is from.

    Raises:
        InputError: naming the structure.
    """
    for name, part in result["structures"].items():
        now = structures.get(name, {})
        differs = [key for key in now if key in part and part[key] != now[key]]
        if set(differs) - {"fingerprint"}:
            raise InputError(
                f"{name} was another structure when it was measured: {part['formula']}, not {now['formula']}",
                file=source,
                hint="give the same --structure, or measure anew under another name",
            )
        if differs:
            log.warning("%s: %s was not exactly this structure when it was measured", source, name)


def attach(result: dict[str, Any], reference: Reference) -> None:
    """Put reference values beside those of a result, in place.

    A value gets ``reference``, ``error`` (of several numbers the mean absolute one), ``tolerance``, ``within`` and
    ``source``. One that was not found has the value None; what cannot be compared is among the notes.

    Args:
        result: as ``eval --physics`` writes it.
        reference: values by structure and property.
    """
    for structure, part in result["structures"].items():
        for name, one in part["properties"].items():
            expected = {**reference.get("", {}).get(name, {}), **reference.get(structure, {}).get(name, {})}
            if not expected:
                continue
            one.setdefault("values", {})
            notes = one.setdefault("notes", [])
            notes += [note for note in _compare(one["values"], expected) if note not in notes]


def outside_tolerance(result: Mapping[str, Any]) -> list[str]:
    """The values that are further off than the reference allows, or missing, as ``structure: property.value``."""
    return [
        f"{structure}: {name}.{value}"
        for structure, part in result["structures"].items()
        for name, one in part["properties"].items()
        for value, row in one.get("values", {}).items()
        if row.get("tolerance") is not None and not row.get("within")
    ]


def _compare(rows: dict[str, dict[str, Any]], expected: Mapping[str, Expected]) -> list[str]:
    """What could not be compared, as sentences."""
    found = [name for name, row in rows.items() if row["value"] is not None]
    sentences = []
    for name, one in expected.items():
        known = {"reference": one.value, "tolerance": one.tolerance, "source": one.source}
        if name not in found:
            rows[name] = {"value": None, "unit": one.unit or "", **known, "error": None, "within": False}
            if found:
                sentences.append(f"the reference has {name}, which was not found; found: {', '.join(found)}")
            continue
        error, why = _error(rows[name], one)
        if why is not None:
            sentences.append(f"{name} is not compared: {why}")
        within = None if one.tolerance is None else error is not None and abs(error) <= one.tolerance
        rows[name].update(known, error=error, within=within)
    return sentences


def _error(row: Mapping[str, Any], expected: Expected) -> tuple[float | None, str | None]:
    """Difference to the reference, of lists the mean absolute one; or why there is none."""
    if expected.unit is not None and expected.unit != row["unit"]:
        return None, f"its unit is {row['unit'] or 'none'}, that of the reference {expected.unit}"
    found, wanted = np.array(row["value"], dtype=float), np.array(expected.value, dtype=float)
    if found.shape != wanted.shape:
        return None, f"it has {found.size} values, the reference {wanted.size}"
    return float(found - wanted) if found.ndim == 0 else float(np.abs(found - wanted).mean()), None


def _properties(content: Mapping[str, Any], path: str | Path, place: str) -> dict[str, dict[str, Expected]]:
    known = PROPERTIES.all()
    tables: dict[str, dict[str, Expected]] = {}
    for key, inner in content.items():
        name, dot, value = str(key).partition(".")
        if name not in known:
            raise InputError(
                "is no property", file=path, key=f"{place}{name}", hint=did_you_mean(name, known)
            )
        entries = {value: inner} if dot else inner
        if not isinstance(entries, Mapping):
            raise InputError(
                "has no values by name",
                file=path,
                key=f"{place}{name}",
                hint="write lattice: {a: 3.61}, for one",
            )
        table = tables.setdefault(name, {})
        for entry, given in entries.items():
            table[str(entry)] = _expected(given, path, f"{place}{name}.{entry}")
    return tables


def _expected(given: Any, path: str | Path, key: str) -> Expected:
    entry = given if isinstance(given, Mapping) else {"value": given}
    for name in entry:
        if name not in _KEYS:
            raise InputError(
                "is unknown", file=path, key=f"{key}.{name}", hint=did_you_mean(str(name), _KEYS)
            )
    value = entry.get("value")
    numbers = (
        [_number(one, path, key) for one in value] if isinstance(value, list) else _number(value, path, key)
    )
    tolerance = entry.get("tolerance")
    if tolerance is not None:
        tolerance = _number(tolerance, path, f"{key}.tolerance")
        if tolerance < 0:
            raise InputError(f"{tolerance:g} is below 0", file=path, key=f"{key}.tolerance")
    unit = entry.get("unit")
    return Expected(numbers, None if unit is None else str(unit), tolerance, str(entry.get("source") or ""))


def _number(value: Any, path: str | Path, key: str) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f"{value!r} is no number", file=path, key=key)
    return number
