"""A run as one HTML file that needs nothing beside it.

Pictures are matplotlib SVG inside the file. Interactive curves would bring four megabytes of script into every run
folder, of which a reader uses the zoom now and then; the numbers behind the curves are in ``metrics.csv``.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pimlip_zoo.files import write_text
from pimlip_zoo.report.learning import Row, learning_curves, loss_terms
from pimlip_zoo.report.parity import Pairs, parity_figure
from pimlip_zoo.report.physics import physics_figure, physics_rows, physics_text
from pimlip_zoo.report.pictures import pictures
from pimlip_zoo.report.style import CSS
from pimlip_zoo.written import milli

if TYPE_CHECKING:
    from matplotlib.figure import Figure

QUANTITIES = {
    "energy_per_atom": ("energy", "meV/atom"),
    "forces": ("forces", "meV/Å"),
    "stress": ("stress", "meV/Å³"),
}
"""Name and unit of a thousandth of what has errors, by its key in ``test.json``."""


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """What a report shows; an empty part is left out."""

    name: str
    """Of the run."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """What is to be seen first, by name."""
    tests: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Errors by data set, as ``test.json`` has them, in eV and Å."""
    curve: Sequence[Row] = ()
    """Rows of ``metrics.csv``."""
    pairs: Mapping[str, Pairs] = field(default_factory=dict)
    """(reference, predicted) by data set and quantity."""
    structures: Mapping[str, str] = field(default_factory=dict)
    """Hashes of the training and of the validation structures: whether errors of two runs can be compared."""
    coverage: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Structures, atoms and labels by split."""
    species: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Energy reference and scale in eV, by symbol."""
    references: str = ""
    """Where the energy references come from."""
    changed: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    """Options that are not the defaults: value and default, by dotted key."""
    filled: Collection[str] = ()
    """Options that the recipe chose, and nobody gave."""
    config: str = ""
    """The complete configuration, YAML."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Of packages, when the run was trained."""
    physics: Mapping[str, Any] = field(default_factory=dict)
    """What ``eval --physics`` wrote."""
    notes: Sequence[str] = ()
    """What a reader has to know, such as an unfinished training."""


def write_report(data: ReportData, file: Path) -> None:
    """Write the report under a temporary name, then rename it."""
    write_text(file, render_report(data))


def render_report(data: ReportData) -> str:
    """The HTML text."""
    sections = [
        _named("", data.facts),
        _tests(data.tests),
        _curve(data.curve),
        _parity(data.pairs, data.tests),
        _physics(data.physics),
        _coverage(data.coverage),
        _species(data),
        _configuration(data),
        _named("Versions", data.versions),
    ]
    return page(data.name, "pimlip-zoo run", data.notes, sections)


def render_curve(name: str, rows: Sequence[Sequence[str]], sentences: Sequence[str], plot: Figure) -> str:
    """The HTML text of a data-efficiency curve.

    Args:
        name: of its folder.
        rows: of the table, the first with the columns' names; plain text.
        sentences: what the recipes equal.
        plot: errors against the number of labels.
    """
    head, *body = [[breakable(cell) for cell in row] for row in rows]
    said = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    figure = pictures(plot, "Errors against labels")
    return page(
        name,
        "pimlip-zoo curve",
        (),
        [
            section("What labels are worth", f"<ul>{said}</ul>" if said else ""),
            section("Errors by number of labels", figure),
            section("Runs", table(head, body, text=True)),
        ],
    )


def page(name: str, kind: str, notes: Sequence[str], sections: Sequence[str]) -> str:
    """A page of its own.

    Args:
        name: its title.
        kind: what it is about, above the title.
        notes: sentences below the title.
        sections: HTML; empty ones are left out.
    """
    said = "".join(f'<p class="note">{escape(note)}</p>' for note in notes)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(name)} · pimlip-zoo</title><style>{CSS}</style></head>\n<body><main>\n"
        f'<header><div class="kind">{escape(kind)}</div><h1>{escape(name)}</h1>{said}</header>\n'
        + "\n".join(part for part in sections if part)
        + "\n<footer>Energies in eV, lengths in Å; errors are those of the best weights unless said otherwise."
        "</footer>\n</main></body></html>\n"
    )


def section(title: str, body: str) -> str:
    """A part of a page; nothing where it is empty."""
    heading = f"<h2>{escape(title)}</h2>" if title else ""
    return f"<section>{heading}{body}</section>" if body else ""


def _named(title: str, facts: Mapping[str, str]) -> str:
    items = (f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in facts.items())
    return section(title, f'<dl class="facts">{"".join(items)}</dl>' if facts else "")


def _tests(tests: Mapping[str, Mapping[str, Any]]) -> str:
    shown = {q: names for q, names in QUANTITIES.items() if any(t.get(q) for t in tests.values())}
    if not shown:
        return ""
    head = ["data"]
    for name, unit in shown.values():
        head += [f"{name} MAE<small>{unit}</small>", f"{name} RMSE<small>{unit}</small>"]
    rows = []
    for name, summary in tests.items():
        cells = [f"{breakable(name)}<small>{summary['n_structures']:,} structures</small>"]
        for quantity in shown:
            cells += [_milli(summary.get(quantity), kind) for kind in ("mae", "rmse")]
        rows.append(cells)
    body = table(head, rows, strong=tuple(range(1, len(head), 2)))
    return section("Errors", body + _by_species(tests))


def _by_species(tests: Mapping[str, Mapping[str, Any]]) -> str:
    species = list(dict.fromkeys(s for summary in tests.values() for s in summary.get("per_species", {})))
    if len(species) < 2:
        return ""
    rows = [
        [
            breakable(name),
            *[_milli(summary.get("per_species", {}).get(s, {}).get("forces"), "mae") for s in species],
        ]
        for name, summary in tests.items()
    ]
    head = ["forces MAE<small>meV/Å</small>", *[escape(s) for s in species]]
    return "<h3>By species</h3>" + table(head, rows)


def _curve(rows: Sequence[Row]) -> str:
    if len(rows) < 2:
        return ""
    images = pictures(learning_curves(rows), "Validation errors and training loss by step")
    if (terms := loss_terms(rows)) is not None:
        images += pictures(terms, "The terms of the loss, and what each is multiplied by, by step")
    return section("Learning curves", images)


def _parity(pairs: Mapping[str, Pairs], tests: Mapping[str, Mapping[str, Any]]) -> str:
    parts = []
    compared = {name: values for name, values in pairs.items() if values}
    if not compared:
        return ""
    for number, (name, values) in enumerate(compared.items()):
        figure = parity_figure(values, errors=tests.get(name))
        image = pictures(figure, f"Predicted against reference values, {name}", narrow=len(values) < 3)
        state = " open" if number == 0 else ""
        parts.append(f"<details{state}><summary>{escape(name)}</summary>{image}</details>")
    return section("Predicted against reference", "".join(parts))


def _physics(physics: Mapping[str, Any]) -> str:
    parts = []
    if unfinished := physics.get("unfinished"):
        text = (
            f"Measured before the training had ended, at step {unfinished['step']:,} of {unfinished['of']:,}."
        )
        parts.append(f'<p class="note">{text}</p>')
    head = ["property", "value", "unit", "reference", "error"]
    for name, part in physics.get("structures", {}).items():
        rows = physics_rows(part)
        compared = any(row[3:] != ["–", "–"] for row in rows)
        shown = [
            [breakable(row[0]), *row[1:]] if compared else [breakable(row[0]), *row[1:3]] for row in rows
        ]
        figure = physics_figure(part)
        image = pictures(figure, f"Curves of {name}") if figure is not None else ""
        text = "".join(f'<p class="note">{line}</p>' for line in physics_text(part))
        parts.append(
            f"<h3>{escape(name)}</h3>" + (table(head[: len(shown[0])], shown) if rows else "") + image + text
        )
    return section("Properties", "".join(parts))


def _coverage(coverage: Mapping[str, Mapping[str, int]]) -> str:
    if not coverage:
        return ""
    rows = []
    for split, counts in coverage.items():
        total = counts["structures"]
        labels = (counts.get(label, 0) for label in ("energy", "forces", "stress"))
        cells = [f"{n:,}" if n not in (0, total) else ("all" if n else "–") for n in labels]
        rows.append(
            [escape(split), f"{total:,}", f"{counts['atoms']:,}", f"{counts.get('periodic', 0):,}", *cells]
        )
    head = ["split", "structures", "atoms", "periodic", "with energy", "with forces", "with stress"]
    return section("Data", table(head, rows))


def _species(data: ReportData) -> str:
    if not data.species:
        return ""
    rows = [
        [escape(s), f"{e:.6f}".replace("-", "−"), f"{scale:.6g}"] for s, (e, scale) in data.species.items()
    ]
    note = f'<p class="note">References: {escape(data.references)}.</p>' if data.references else ""
    head = ["species", "energy reference<small>eV</small>", "scale<small>eV</small>"]
    return section("Species", table(head, rows) + note)


def _configuration(data: ReportData) -> str:
    body = ""
    if data.changed:
        rows = [
            [
                f"<code>{breakable(key)}</code>",
                breakable(option_text(value)),
                "chosen by the recipe" if key in data.filled else breakable(option_text(default)),
            ]
            for key, (value, default) in sorted(data.changed.items(), key=lambda item: item[0] in data.filled)
        ]
        body = table(["option", "this run", "default"], rows, text=True)
    elif data.config:
        body = '<p class="note">All options have their defaults.</p>'
    if data.config:
        body += (
            f"<details><summary>Complete configuration</summary><pre>{escape(data.config)}</pre></details>"
        )
    return section("Configuration", body)


def table(
    head: Sequence[str], rows: Sequence[Sequence[str]], *, strong: tuple[int, ...] = (), text: bool = False
) -> str:
    """A table that scrolls where the screen is narrow; cells are HTML already.

    Args:
        head: of the columns.
        rows: of cells.
        strong: columns that stand out.
        text: cells are words, not numbers.
    """
    kind = ' class="text"' if text else ""
    top = "".join(f"<th{kind}>{cell}</th>" for cell in head)
    lines = []
    for row in rows:
        cells = []
        for column, cell in enumerate(row):
            mark = ' class="strong"' if column in strong else kind
            cells.append(f"<td{mark}>{cell}</td>")
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def _milli(errors: Mapping[str, float] | None, kind: str) -> str:
    return milli(errors[kind]) if errors else "–"


def breakable(text: str) -> str:
    """A name as HTML that may go on in the next line after ``_``, ``/``, ``:``, ``@`` and a dot between letters."""
    return re.sub(r"([_/:@]|(?<=[a-z])\.(?=[a-z]))", r"\1<wbr>", escape(text))


def option_text(value: Any) -> str:
    """The value of an option, short enough for a table; numbers that were fitted have six digits."""
    if value is None or value == []:
        return "none"
    if isinstance(value, list):
        text = ", ".join(map(option_text, value))
    else:
        text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
