"""The section of a report that shows what ``eval --physics`` found."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SHOWN = 6
"""Of the numbers of one value, such as frequencies; all of them are in ``physics.json``."""
Draw = Callable[[Any, Mapping[str, Any]], None]


def physics_rows(part: Mapping[str, Any]) -> list[list[str]]:
    """The values of a structure as rows of a table: property, value, unit, reference, error.

    Args:
        part: of one structure, as ``eval --physics`` writes it.
    """
    rows = []
    for name, one in part["properties"].items():
        for value, row in one.get("values", {}).items():
            error = _number(row.get("error"), sign=True)
            if row.get("within") is False:
                error = (
                    f"{error} (outside of ±{row['tolerance']:g})"
                    if row.get("tolerance") is not None
                    else error
                )
            cells = [
                f"{name}.{value}",
                _number(row["value"]),
                str(row["unit"]),
                _number(row.get("reference")),
                error,
            ]
            rows.append([html.escape(cell) for cell in cells])
    return rows


def physics_text(part: Mapping[str, Any]) -> list[str]:
    """What a reader has to know of a structure: doubts, notes, and what there is not, with its reason; HTML."""
    lines = [f"{part['formula']}, {part['kind']}: {part['kind_because']}."]
    lines += [f"{note}." for note in part.get("notes", ())]
    missing: dict[str, list[str]] = {}
    for name, one in part["properties"].items():
        lines += [f"{name}: {text}." for text in (*one.get("doubts", ()), *one.get("notes", ()))]
        if one["status"] not in ("computed", "doubtful"):
            missing.setdefault(f"{one['status']}: {one['reason']}", []).append(name)
    lines += [f"{', '.join(names)}: {why}." for why, names in missing.items()]
    return [html.escape(line) for line in lines]


def physics_figure(part: Mapping[str, Any]) -> Figure | None:
    """One panel for each property that has something to draw; None when none has."""
    from matplotlib.figure import Figure

    drawn = [
        (name, one["series"], _DRAWINGS[name][0])
        for name, one in part["properties"].items()
        if name in _DRAWINGS and _complete(name, one.get("series") or {})
    ]
    if not drawn:
        return None
    columns = min(3, len(drawn))
    lines = -(-len(drawn) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.2 * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).reshape(-1)
    for axis, (name, series, draw) in zip(axes, drawn, strict=False):
        draw(axis, series)
        axis.set_title(name.replace("_", " "), fontsize=10)
    for axis in axes[len(drawn) :]:
        axis.set_axis_off()
    return figure


def _equation_of_state(axis: Any, series: Mapping[str, Any]) -> None:
    energies, lowest = np.array(series["energies"]), series["lowest"]
    axis.plot(series["volumes"], 1e3 * (energies - lowest), "o", ms=4)
    axis.plot(series["volumes"], 1e3 * (np.array(series["fitted"]) - lowest), lw=1)
    axis.set(xlabel="volume / Å³ per atom", ylabel="energy / meV per atom")


def _phonons(axis: Any, series: Mapping[str, Any]) -> None:
    axis.plot(series["path"], series["bands"], color="C0", lw=1)
    axis.axhline(0, color="0.6", lw=0.8)
    axis.set_xticks(series["ticks"], ["Γ" if label == "G" else label for label in series["labels"]])
    axis.set(ylabel="frequency / THz", xlim=(series["path"][0], series["path"][-1]))


def _lines(x: str, prefix: str, factor: float = 1.0, **labels: str) -> Draw:
    """Draws a line for every series ``PREFIX + NAME`` over another, named in the legend."""

    def draw(axis: Any, series: Mapping[str, Any]) -> None:
        for name, values in series.items():
            if name.startswith(prefix):
                line = factor * np.array(values, dtype=float)
                axis.plot(series[x], line, lw=1, label=name.removeprefix(prefix))
        axis.legend(fontsize=8)
        axis.set(**labels)

    return draw


def _neb(axis: Any, series: Mapping[str, Any]) -> None:
    axis.plot(series["energies"], "o-", ms=4, lw=1)
    axis.set(xlabel="image", ylabel="energy / eV")


_DRAWINGS: dict[str, tuple[Draw, set[str]]] = {
    "equation_of_state": (_equation_of_state, {"volumes", "energies", "fitted", "lowest"}),
    "phonons": (_phonons, {"path", "bands", "ticks", "labels"}),
    "rdf": (_lines("distances", "g_", xlabel="distance / Å", ylabel="g"), {"distances", "g_all"}),
    "diffusion": (
        _lines("times", "msd_", xlabel="time / ps", ylabel="mean square displacement / Å²"),
        {"times"},
    ),
    "torsions": (_lines("angles", "energies_", 1e3, xlabel="angle / °", ylabel="energy / meV"), {"angles"}),
    "bonds": (_lines("shifts", "energies_", xlabel="stretched by / Å", ylabel="energy / eV"), {"shifts"}),
    "neb": (_neb, {"energies"}),
}
"""How the curves of a property are drawn, and the series that this needs."""


def _complete(name: str, series: Mapping[str, Any]) -> bool:
    """Whether a property got far enough to be drawn."""
    return _DRAWINGS[name][1] <= series.keys() and len(series) > 1 - (name == "neb")


def _number(value: Any, *, sign: bool = False) -> str:
    if value is None:
        return "–"
    if isinstance(value, list):
        shown = " ".join(f"{each:.4g}" for each in value[:_SHOWN]).replace("-", "−")
        return f"{shown} … ({len(value)})" if len(value) > _SHOWN else shown
    return (f"{value:+.4g}" if sign else f"{value:.5g}").replace("-", "−")
