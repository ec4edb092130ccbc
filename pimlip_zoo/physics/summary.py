"""Results of several potentials as rows of one table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

COLUMNS = ("structure", "property", "status", "value", "unit", "reference", "error")
"""Of :func:`value_rows`."""


def value_rows(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The values of a result, one row each; several numbers of one kind are there with their error alone.

    A property without values has a row with its status, so that a potential that does not give it is counted.

    Args:
        result: as ``eval --physics`` writes it.
    """
    rows = []
    for structure, part in result["structures"].items():
        for name, one in part["properties"].items():
            if one["status"] == "not applicable":
                continue
            known = {"structure": structure, "status": one["status"]}
            for value, row in one.get("values", {}).items():
                number = row["value"] if isinstance(row["value"], float) else None
                wanted = row.get("reference")
                rows.append(
                    known
                    | {
                        "property": f"{name}.{value}",
                        "value": number,
                        "unit": row["unit"],
                        "reference": wanted if isinstance(wanted, float) else None,
                        "error": row.get("error"),
                    }
                )
            if not one.get("values"):
                empty = {"property": name, "value": None, "unit": "", "reference": None, "error": None}
                rows.append(known | empty)
    return rows


def summarise_values(rows: Sequence[Mapping[str, Any]], by: Sequence[str]) -> list[dict[str, Any]]:
    """Mean, spread and root mean square error of equal values, and how many potentials gave them.

    Args:
        rows: of :func:`value_rows`, with further columns.
        by: those of the further columns that tell groups apart.
    """
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        key = (row["structure"], row["property"], *(row[name] for name in by))
        groups.setdefault(key, []).append(row)
    summary = []
    for (structure, name, *rest), members in sorted(groups.items(), key=lambda item: str(item[0][:2])):
        values = [row["value"] for row in members if row["value"] is not None]
        errors = [row["error"] for row in members if row["error"] is not None]
        summary.append(
            {
                "structure": structure,
                "property": name,
                **dict(zip(by, rest, strict=True)),
                "runs": len(members),
                "given": sum(row["status"] in ("computed", "doubtful") for row in members),
                "doubtful": sum(row["status"] == "doubtful" for row in members),
                "unit": members[0]["unit"],
                "value": float(np.mean(values)) if values else None,
                "value_std": float(np.std(values, ddof=1)) if len(values) > 1 else None,
                "reference": members[0]["reference"],
                "rms_error": float(np.sqrt(np.square(errors).mean())) if errors else None,
            }
        )
    return summary
