"""Several runs side by side, as one HTML file that needs nothing beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pimlip_zoo.files import write_text
from pimlip_zoo.report.html import QUANTITIES, ReportData, breakable, option_text, page, section, table
from pimlip_zoo.report.learning import PANELS, finish, points
from pimlip_zoo.report.pictures import pictures
from pimlip_zoo.written import milli

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FACTS = ("Architecture", "Parameters", "Cutoff", "Trained on", "Steps", "Best weights", "Time")
_COLOURS = ("#1f5fa8", "#b3541e", "#3c7d3c", "#7a4a99", "#a8871f", "#1f8f8f", "#a83a5b", "#5b6570")


def write_comparison(runs: Sequence[ReportData], file: Path) -> None:
    """Write the page under a temporary name, then rename it."""
    write_text(file, render_comparison(runs))


def render_comparison(runs: Sequence[ReportData]) -> str:
    """The HTML text: errors first, then what differs between the runs, then how the errors fell.

    Args:
        runs: as their own reports show them; names that are equal are numbered.
    """
    names = _names(runs)
    notes = [f"{name}: {note}" for name, run in zip(names, runs, strict=True) for note in run.notes]
    sections = [
        *_errors(names, runs),
        _curves(names, runs),
        _facts(names, runs),
        _options(names, runs),
    ]
    return page(f"{len(runs)} runs", "pimlip-zoo comparison", notes, sections)


def _names(runs: Sequence[ReportData]) -> list[str]:
    seen: dict[str, int] = {}
    names = []
    for run in runs:
        seen[run.name] = seen.get(run.name, 0) + 1
        names.append(run.name if seen[run.name] == 1 else f"{run.name} ({seen[run.name]})")
    return names


def _errors(names: Sequence[str], runs: Sequence[ReportData]) -> list[str]:
    """A table for each data set that at least one run was evaluated on; the smallest error is bold."""
    sets = list(dict.fromkeys(name for run in runs for name in run.tests))
    parts = []
    for data in sets:
        found = [run.tests.get(data) for run in runs]
        shown = {q: label for q, label in QUANTITIES.items() if any(one and one.get(q) for one in found)}
        if not shown:
            continue
        head = ["run"]
        for name, unit in shown.values():
            head += [f"{name} MAE<small>{unit}</small>", f"{name} RMSE<small>{unit}</small>"]
        columns = [(q, kind) for q in shown for kind in ("mae", "rmse")]
        differ = len({run.structures[data] for run in runs if data in run.structures}) > 1
        best = {key: min(values) for key in columns if not differ and (values := _known(found, *key))}
        rows = []
        for name, one in zip(names, found, strict=True):
            count = f"<small>{one['n_structures']:,} structures</small>" if one else ""
            cells = [f"{breakable(name)}{count}"]
            for key in columns:
                value = _value(one, *key)
                text = "–" if value is None else milli(value)
                cells.append(f"<b>{text}</b>" if value is not None and value == best.get(key) else text)
            rows.append(cells)
        text = (
            f"The {data} structures of the runs are not the same: these errors do not compare the potentials."
        )
        note = f'<p class="note">{escape(text)}</p>' if differ else ""
        parts.append(section(f"Errors on {data}", note + table(head, rows)))
    return parts


def _value(errors: Mapping[str, Any] | None, quantity: str, kind: str) -> float | None:
    found = (errors or {}).get(quantity)
    return float(found[kind]) if found else None


def _known(found: Sequence[Mapping[str, Any] | None], quantity: str, kind: str) -> list[float]:
    values = (_value(one, quantity, kind) for one in found)
    return [value for value in values if value is not None]


def comparison_curves(names: Sequence[str], runs: Sequence[ReportData]) -> Figure | None:
    """Validation errors by step, a panel for each quantity and a line for each run; None where none was validated."""
    from matplotlib.figure import Figure

    panels = [
        (name, label)
        for name, label in PANELS
        if any(len(points(run.curve, f"valid_{name}_mae")[0]) > 1 for run in runs)
    ]
    if not panels:
        return None
    figure = Figure(figsize=(4.6 * len(panels), 3.2), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (name, label) in zip(axes, panels, strict=True):
        for number, (run_name, run) in enumerate(zip(names, runs, strict=True)):
            steps, values = points(run.curve, f"valid_{name}_mae")
            colour = _COLOURS[number % len(_COLOURS)]
            axis.plot(steps, [1e3 * value for value in values], lw=1.3, color=colour, label=run_name)
        axis.set_ylabel(f"{label}, MAE")
        finish(axis)
    axes[0].legend(frameon=False, fontsize=7)
    return figure


def _curves(names: Sequence[str], runs: Sequence[ReportData]) -> str:
    figure = comparison_curves(names, runs)
    if figure is None:
        return ""
    return section("Learning curves", pictures(figure, "Validation errors of the runs by step"))


def _facts(names: Sequence[str], runs: Sequence[ReportData]) -> str:
    shown = [fact for fact in _FACTS if any(fact in run.facts for run in runs)]
    rows = [
        [escape(name), *(escape(run.facts.get(fact, "–")) for fact in shown)]
        for name, run in zip(names, runs, strict=True)
    ]
    return section("Runs", table(["run", *map(escape, shown)], rows))


def _options(names: Sequence[str], runs: Sequence[ReportData]) -> str:
    """Options in which the runs differ from each other."""
    keys = list(dict.fromkeys(key for run in runs for key in run.changed))
    rows = []
    for key in keys:
        default = next(run.changed[key][1] for run in runs if key in run.changed)
        values = [option_text(run.changed[key][0] if key in run.changed else default) for run in runs]
        if len(set(values)) > 1:
            rows.append([f"<code>{breakable(key)}</code>", *(breakable(value) for value in values)])
    return section("What differs", table(["option", *map(escape, names)], rows, text=True)) if rows else ""
