"""What the rounds brought: a table, and a report that says what was bought and why."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pimlip_zoo.datasets.lmdb import FrameStore
from pimlip_zoo.files import read_json, write_text
from pimlip_zoo.report.rounds import Bought, RoundStory

__all__ = ["REPORT", "TABLE", "curve_point", "read_table", "write_rounds_report"]

TABLE = "rounds.json"
REPORT = "report.html"


def read_table(out: Path) -> list[dict[str, Any]]:
    """The rounds that are done.

    Each has round, labels, failures, energy (eV/atom), forces (eV/Å), test, uncertainty (eV/Å, of the forces in the
    pool; None where the potential has no posterior), acquisition and run.
    """
    path = out / TABLE
    return read_json(path, list) if path.exists() else []


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
