"""What the rounds brought: a table, and a report that says what was bought and why."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pimlip_zoo.datasets.lmdb import FrameStore
from pimlip_zoo.errors import InputError
from pimlip_zoo.files import read_json, write_text
from pimlip_zoo.report.rounds import Bought, RoundStory

TABLE = "rounds.json"
REPORT = "report.html"


class _Row(BaseModel):
    """A round that is done, as :func:`read_table` gives it."""

    model_config = ConfigDict(extra="ignore", strict=True)

    round: int = Field(gt=0)
    labels: int = Field(ge=0)
    failures: int = Field(ge=0)
    energy: float | None = Field(allow_inf_nan=False)
    forces: float | None
    test: str
    uncertainty: float | None = Field(None, allow_inf_nan=False)
    acquisition: str
    run: str


def read_table(out: Path) -> list[dict[str, Any]]:
    """The rounds that are done.

    Each has round, labels, failures, energy (eV/atom) and forces (eV/Å; None where there are no labels of that kind),
    test, uncertainty (eV/Å, of the forces in the pool; None where the potential has no posterior), acquisition and run.

    Raises:
        InputError: when the table is damaged.
    """
    path = out / TABLE
    return [checked_row(row, path) for row in read_json(path, list)] if path.exists() else []


def checked_row(content: Any, path: Path) -> dict[str, Any]:
    """A row as :func:`read_table` gives it.

    Raises:
        InputError: when it is damaged.
    """
    try:
        row = _Row.model_validate(content).model_dump()
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(
            f"is damaged: {first['msg']}",
            file=path,
            key=".".join(map(str, first["loc"])),
            hint="remove it, and it is made anew",
        ) from error
    if row["forces"] is not None and not np.isfinite(row["forces"]):  # of versions before, for none
        row["forces"] = None
    return row


def write_rounds_report(out: Path) -> Path:
    """What was bought, why, and what it brought, as one HTML file; of the rounds that are done."""
    from pimlip_zoo.report.curve import curve_figure
    from pimlip_zoo.report.rounds import render_rounds

    rows = read_table(out)
    stories = [_story(out / f"round-{row['round']}", row) for row in rows]
    path = out / REPORT
    plot = curve_figure([curve_point(row) for row in rows]) if len(rows) > 1 else None
    write_text(path, render_rounds(out.name, rows, stories, plot))
    return path


def curve_point(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the table as a point of error against labels."""
    return {
        "test": row["test"],
        "weak": "rounds",
        "size": row["labels"],
        "energy_per_atom_rmse": row["energy"],
        "energy_per_atom_rmse_std": None,
        "forces_rmse": row["forces"],
        "forces_rmse_std": None,
    }


def _story(folder: Path, row: Mapping[str, Any]) -> RoundStory:
    from ase.formula import Formula
    from ase.symbols import Symbols

    why: dict[str, Any] = {}
    if (folder / "choice.json").exists():
        why = read_json(folder / "choice.json", dict)
    labels = {frame.info.get("selected_rank"): frame for frame in FrameStore(folder / "labels.lmdb")}
    bought = []
    for frame in FrameStore(folder / "chosen.lmdb"):
        found = labels.get(frame.info["selected_rank"])
        forces = None if found is None else found.forces
        said = [f"{frame.info[key]}" for key in ("config_type", "trajectory") if key in frame.info]
        said += [f"{frame.info['temperature']:g} K"] if "temperature" in frame.info else []
        bought.append(
            Bought(
                formula=Formula(str(Symbols(frame.numbers))).format("hill"),
                origin=", ".join([*said, f"number {frame.info['pool_index']} of the pool"]),
                gain=frame.info.get("selected_gain"),
                energy=None if found is None else found.energy,
                largest=None if forces is None else float(np.linalg.norm(forces, axis=1).max()),
                failure="" if found is not None else "failed, see labels.lmdb.failed.extxyz",
            )
        )
    return RoundStory(
        number=int(row["round"]),
        acquisition=str(row["acquisition"]),
        unit=str(why.get("unit", "")),
        pool=int(why.get("pool", 0)),
        usable=int(why.get("usable", 0)),
        left_out=why.get("left_out", {}),
        bought=bought,
    )
