"""Errors against the number of labels, as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pimlip_zoo.errors import InputError
from pimlip_zoo.files import replacing

__all__ = ["curve_plot"]

_QUANTITIES = {"energy_per_atom_rmse": "energy RMSE (meV/atom)", "forces_rmse": "force RMSE (meV/Å)"}


def curve_plot(summary: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Draw energy and force errors, one row for each test set, one line for each way of training.

    Args:
        summary: rows with test, weak, size and ``energy_per_atom_rmse``, ``forces_rmse`` (eV, eV/Å) with their
            ``_std`` over seeds, which become error bars.
        file: .png, .pdf or .svg.

    Raises:
        InputError: without rows, or for a file type that cannot be drawn.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    if file.suffix.lower() not in (".png", ".pdf", ".svg"):
        raise InputError(f"cannot draw {file.suffix or 'this'}", file=file, mend="use .png, .pdf or .svg")
    if not summary:
        raise InputError("there is no result to draw", file=file)
    tests = sorted({row["test"] for row in summary})
    figure, axes = plt.subplots(
        len(tests), 2, figsize=(9.0, 3.4 * len(tests)), squeeze=False, layout="constrained"
    )
    for line, test in enumerate(tests):
        for column, (quantity, label) in enumerate(_QUANTITIES.items()):
            axis = axes[line, column]
            for weak in sorted({row["weak"] for row in summary}):
                rows = [
                    row
                    for row in summary
                    if row["test"] == test and row["weak"] == weak and row[quantity] is not None
                ]
                if not rows:
                    continue
                axis.errorbar(
                    [row["size"] for row in rows],
                    [1e3 * row[quantity] for row in rows],
                    yerr=[1e3 * (row[f"{quantity}_std"] or 0.0) for row in rows],
                    marker="o",
                    capsize=3,
                    label=weak,
                )
            sizes = sorted({row["size"] for row in summary})
            axis.set(xscale="log", yscale="log", xlabel="labelled structures", ylabel=label, title=test)
            axis.set_xticks(sizes, [str(size) for size in sizes])
            axis.minorticks_off()
            axis.grid(alpha=0.3)
    axes[0, 0].legend()
    with replacing(file) as temporary:
        figure.savefig(temporary, dpi=150)
    plt.close(figure)
