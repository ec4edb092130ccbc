"""The audit as tables for the terminal, as JSON, and as one HTML file without anything from elsewhere."""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from pimlip_zoo.datasets.audit.references import fit_atom_energies
from pimlip_zoo.datasets.audit.survey import Survey
from pimlip_zoo.datasets.lmdb.record import ENERGY, STRESS

if TYPE_CHECKING:
    from rich.table import Table

    from pimlip_zoo.datasets.audit import Audit

_SHOWN = 12
_Section = tuple[str, tuple[str, ...], list[tuple[str, ...]]]
"""Title, columns, rows."""


def describe(survey: Survey) -> dict[str, Any]:
    """What a set holds, in numbers that JSON takes."""
    from ase.data import chemical_symbols
    from ase.formula import Formula

    facts = survey.facts
    if not len(facts):
        return {"name": survey.name, "structures": 0, "unusable": len(survey.bad)}
    fit = fit_atom_energies(survey.compositions, facts["composition"], facts["energy"])
    per_frame = np.bincount(facts["composition"], minlength=len(survey.compositions))
    present = np.flatnonzero(survey.compositions.any(axis=0))
    formulas = {
        Formula.from_dict({chemical_symbols[z]: int(n) for z, n in enumerate(row) if n}).format("hill"): int(
            count
        )
        for row, count in zip(survey.compositions, per_frame, strict=True)
    }
    forces = facts["force_atoms"] > 0
    atoms = int(facts["natoms"].sum())
    return {
        "name": survey.name,
        "structures": len(facts),
        "unusable": len(survey.bad),
        "atoms": atoms,
        "atoms_per_structure": _range(facts["natoms"]),
        "edges_per_atom": float(facts["edges"].sum() / atoms),
        "periodic": int(np.count_nonzero(facts["periodic"])),
        "labels": {
            "energy": int(np.count_nonzero(facts["labels"] & ENERGY)),
            "forces": int(np.count_nonzero(forces)),
            "stress": int(np.count_nonzero(facts["labels"] & STRESS)),
        },
        "species": {
            chemical_symbols[z]: {
                "atoms": int((survey.compositions[:, z] * per_frame).sum()),
                "structures": int(per_frame[survey.compositions[:, z] > 0].sum()),
            }
            for z in present
        },
        "compositions": dict(sorted(formulas.items(), key=lambda item: -item[1])),
        "groups": dict(sorted(survey.groups.items(), key=lambda item: -item[1])),
        "force_rms": float(np.sqrt(facts["force_square"].sum() / max(3 * facts["force_atoms"].sum(), 1)))
        if forces.any()
        else None,
        "force_max": float(facts["force_max"][forces].max()) if forces.any() else None,
        "energy_per_atom": _range((facts["energy"] / facts["natoms"])[np.isfinite(facts["energy"])]),
        "suggested_atom_energies": fit.energies,
        "atom_energies_determined": fit.determined,
        "atom_energies_residual": _rms(fit.residual),
    }


def as_json(audit: Audit) -> dict[str, Any]:
    """Everything, for a file."""
    return {
        "refused": audit.refused,
        "findings": [finding.as_dict() for finding in audit.findings],
        "data": [describe(survey) for survey in audit.surveys],
    }


def survey_tables(survey: Survey) -> list[Table]:
    """Labels, elements, compositions and suggested energies of atoms."""
    facts = describe(survey)
    return [_table(title, columns, rows) for title, columns, rows in _sections(facts)]


def finding_table(audit: Audit) -> Table:
    """What was found, the gravest first."""
    from rich.table import Table

    colours = {"refused": "bold red", "warning": "yellow", "note": "dim"}
    table = Table(title="Findings", title_justify="left", box=None, pad_edge=False, header_style="bold")
    table.add_column("", no_wrap=True)
    table.add_column("data", no_wrap=True)
    table.add_column("what")
    table.add_column("structures")
    for finding in audit.findings:
        hint = f" [dim]({finding.hint})[/dim]" if finding.hint else ""
        frames = " ".join(map(str, finding.frames[:5])) + (" ..." if finding.count > 5 else "")
        colour = colours[finding.severity]
        table.add_row(f"[{colour}]{finding.severity}[/]", finding.data, finding.message + hint, frames)
    return table


def as_html(audit: Audit) -> str:
    """One file that can be sent to a colleague."""
    warned = any(finding.severity == "warning" for finding in audit.findings)
    allowed = (
        "Nothing forbids training; look at the warnings first."
        if warned
        else "Nothing speaks against training."
    )
    verdict = "Training on these data is refused." if audit.refused else allowed
    parts = [f"<h1>Data audit</h1><p class={'bad' if audit.refused else 'good'}>{verdict}</p>"]
    rows = [
        (
            finding.severity,
            finding.data,
            finding.message + (f" ({finding.hint})" if finding.hint else ""),
            " ".join(map(str, finding.frames)),
        )
        for finding in audit.findings
    ]
    parts.append(_html_table("Findings", ("", "data", "what", "structures"), rows))
    for survey in audit.surveys:
        parts.append(f"<h2>{html.escape(survey.name)}</h2>")
        parts += [_html_table(*section) for section in _sections(describe(survey))]
        parts.append(_histograms(survey))
    style = (
        "body{font:15px/1.5 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em;color:#222}"
        "table{border-collapse:collapse;margin:1em 0}td,th{padding:.2em .8em;text-align:left;"
        "border-bottom:1px solid #ddd;vertical-align:top}caption{text-align:left;font-weight:600;padding:.3em 0}"
        ".bad{color:#b00}.good{color:#080}"
        ".refused{color:#b00;font-weight:600}.warning{color:#a60}.note{color:#777}svg{margin-right:1em}"
    )
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>Data audit</title><style>{style}</style>"
        + "".join(parts)
    )


def _sections(facts: dict[str, Any]) -> list[_Section]:
    name = facts["name"]
    if not facts["structures"]:
        return [(name, ("structures",), [("0",)])]
    count = facts["structures"]
    labels: list[tuple[str, ...]] = [(label, _share(have, count)) for label, have in facts["labels"].items()]
    general: list[tuple[str, ...]] = [
        ("structures", str(count)),
        ("atoms", f"{facts['atoms']} ({_span(facts['atoms_per_structure'])} a structure)"),
        ("neighbours", f"{facts['edges_per_atom']:.1f} an atom"),
        ("periodic", _share(facts["periodic"], count)),
        *labels,
    ]
    if facts["force_rms"] is not None:
        general.append(
            ("forces", f"RMS {facts['force_rms']:.3f} eV/Å, largest {facts['force_max']:.2f} eV/Å")
        )
    sections: list[_Section] = [(name, ("", ""), general)]
    energies = facts["suggested_atom_energies"]
    title = "Elements, with energies of atoms fitted to the total energies"
    if energies and not facts["atom_energies_determined"]:
        title += " (not determined by the compositions: one choice of many)"
    sections.append(
        (
            title,
            ("element", "atoms", "structures", "E0 / eV"),
            [
                (
                    symbol,
                    str(numbers["atoms"]),
                    str(numbers["structures"]),
                    f"{energies[symbol]:.4f}" if symbol in energies else "-",
                )
                for symbol, numbers in facts["species"].items()
            ],
        )
    )
    for title, key in (("Compositions", "compositions"), ("Groups", "groups")):
        rows: list[tuple[str, ...]] = [(str(label), str(number)) for label, number in facts[key].items()]
        more: list[tuple[str, ...]] = [(f"... {len(rows) - _SHOWN} more", "")] if len(rows) > _SHOWN else []
        if rows:
            sections.append((title, (title.lower().rstrip("s"), "structures"), rows[:_SHOWN] + more))
    return sections


def _table(title: str, columns: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None, pad_edge=False, show_header=any(columns))
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*row)
    return table


def _html_table(title: str, columns: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    head = "".join(f"<th>{html.escape(column)}</th>" for column in columns) if any(columns) else ""
    body = "".join("<tr>" + "".join(f"<td>{_cell(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><caption>{html.escape(title)}</caption><tr>{head}</tr>{body}</table>"


def _cell(text: str) -> str:
    escaped = html.escape(text)
    return f"<span class={text}>{escaped}</span>" if text in ("refused", "warning", "note") else escaped


def _histograms(survey: Survey) -> str:
    facts = survey.facts
    known = np.isfinite(facts["energy"])
    fit = fit_atom_energies(survey.compositions, facts["composition"], facts["energy"])
    drawn = [
        ("energy less fitted references, eV/atom", fit.residual[known]),
        ("largest force, eV/Å", facts["force_max"][np.isfinite(facts["force_max"])]),
        ("atoms", facts["natoms"].astype(float)),
    ]
    return "".join(_histogram(title, values) for title, values in drawn if len(values) > 1)


def _histogram(title: str, values: Any) -> str:
    counts, edges = np.histogram(values, bins=40)
    heights = 76 * counts / counts.max()
    bars = "".join(
        f"<rect x={7 * k} y={80 - height:.1f} width=6 height={height:.1f} fill='#48a'/>"
        for k, height in enumerate(heights)
        if height
    )
    return (
        f"<svg width=290 height=120 role=img aria-label='{html.escape(title)}'>{bars}"
        f"<text x=0 y=96 font-size=11>{edges[0]:.4g}</text>"
        f"<text x=280 y=96 font-size=11 text-anchor=end>{edges[-1]:.4g}</text>"
        f"<text x=140 y=112 font-size=12 text-anchor=middle>{html.escape(title)}</text></svg>"
    )


def _share(have: int, total: int) -> str:
    return {0: "none", total: "all"}.get(have, f"{have} of {total} ({100 * have / total:.1f} %)")


def _range(values: Any) -> list[float] | None:
    return [float(np.min(values)), float(np.median(values)), float(np.max(values))] if len(values) else None


def _span(numbers: list[float]) -> str:
    low, _, high = numbers
    return f"{low:.0f}" if low == high else f"{low:.0f} to {high:.0f}"


def _rms(values: Any) -> float | None:
    known = values[np.isfinite(values)]
    return float(np.sqrt(np.mean(known**2))) if len(known) else None
