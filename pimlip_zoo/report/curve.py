"""Errors against the number of labels, as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pimlip_zoo.errors import InputError
from pimlip_zoo.report.equivalence import Equivalence
from pimlip_zoo.report.figures import save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_QUANTITIES = {
    "energy_per_atom_rmse": ("energies", "energy RMSE (meV/atom)", 1e3),
    "forces_rmse": ("forces", "force RMSE (meV/Å)", 1e3),
    "stress_rmse": ("stress", "stress RMSE (meV/Å³)", 1e3),
    "stable_ps": ("stability", "stable for (ps)", 1.0),
}


def curve_plot(summary: Sequence[Mapping[str, Any]], file: Path, equal: Sequence[Equivalence] = ()) -> None:
    """Draw energy and force errors, one row for each test set, one line for each way of training.

    Args:
        summary: rows with test, weak, size and ``energy_per_atom_rmse``, ``forces_rmse`` (eV, eV/Å) with their
            ``_std`` over seeds, which become error bars.
        file: .png, .pdf or .svg.
        equal: how many plain labels each recipe's equal, drawn as dotted lines to the plain curve.

    Raises:
        InputError: without rows, or for a file type that cannot be drawn.
    """
    if not summary:
        raise InputError("there is no result to draw", file=file)
    save_figure(curve_figure(summary, equal), file)


def curve_figure(summary: Sequence[Mapping[str, Any]], equal: Sequence[Equivalence] = ()) -> Figure:
    """See :func:`curve_plot`."""
    import matplotlib.ticker as mtick
    from matplotlib.figure import Figure

    tests = sorted({row["test"] for row in summary})
    shown = {
        quantity: said
        for quantity, said in _QUANTITIES.items()
        if quantity in ("energy_per_atom_rmse", "forces_rmse")
        or any(row.get(quantity) is not None for row in summary)
    }
    figure = Figure(figsize=(4.5 * len(shown), 3.4 * len(tests)), layout="constrained")
    axes = figure.subplots(len(tests), len(shown), squeeze=False)
    for line, test in enumerate(tests):
        for column, (quantity, (name, label, factor)) in enumerate(shown.items()):
            axis, colours = axes[line, column], {}
            for weak in sorted({row["weak"] for row in summary}):
                rows = [
                    row
                    for row in summary
                    if row["test"] == test and row["weak"] == weak and row.get(quantity) is not None
                ]
                if not rows:
                    continue
                drawn = axis.errorbar(
                    [row["size"] for row in rows],
                    [factor * row[quantity] for row in rows],
                    yerr=[factor * (row.get(f"{quantity}_std") or 0.0) for row in rows],
                    marker="o",
                    capsize=3,
                    label=weak,
                )
                colours[weak] = drawn[0].get_color()
                for each in equal:
                    if (each.test, each.weak, each.quantity) == (test, weak, name) and each.beyond == 0:
                        (at,) = [factor * row[quantity] for row in rows if row["size"] == each.size]
                        ends = sorted((float(each.size), each.equal))
                        axis.plot(ends, [at, at], ":", color=colours[weak])
                        axis.annotate(
                            f"{each.size} = {each.number}",
                            (float(np.sqrt(ends[0] * ends[1])), at),
                            xytext=(0, 3),
                            textcoords="offset points",
                            ha="center",
                            fontsize=7,
                            color=colours[weak],
                        )
            sizes = sorted({row["size"] for row in summary})
            axis.set(xscale="log", yscale="log", xlabel="labelled structures", ylabel=label, title=test)
            axis.set_xticks(sizes, [str(size) for size in sizes])
            axis.xaxis.set_minor_locator(mtick.NullLocator())
            low, high = axis.get_ylim()
            if high < 100 * low:  # hardly a decade has its label within: label between decades, too
                axis.yaxis.set_minor_locator(mtick.LogLocator(subs=(2.0, 3.0, 5.0, 7.0)))
                axis.yaxis.set_minor_formatter(mtick.StrMethodFormatter("{x:g}"))
                axis.yaxis.set_major_formatter(mtick.StrMethodFormatter("{x:g}"))
            axis.grid(alpha=0.3)
    for axis in axes.flat:
        if axis.containers:
            axis.legend()
            break
    return figure
