"""Errors against uncertainties, as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pimlip_zoo.errors import InputError
from pimlip_zoo.report.figures import save_figure

_AXES = {"energy": ("energy (meV)", 1e3), "forces": ("forces (meV/Å)", 1e3)}


def calibration_plot(summary: Mapping[str, Mapping[str, Any]], file: Path, *, title: str = "") -> None:
    """Draw root mean square error against uncertainty in ten groups; the diagonal is a perfect calibration.

    Args:
        summary: as :func:`pimlip_zoo.evaluation.uncertainty_summary` makes it.
        file: .png, .pdf or .svg.
        title: above the picture.

    Raises:
        InputError: for a file type that cannot be drawn, or when there is nothing to draw.
    """
    from matplotlib.figure import Figure

    names = [name for name in _AXES if name in summary]
    if not names:
        raise InputError("no structure has a label to compare with", file=file)
    figure = Figure(figsize=(4.4 * len(names), 4.0), layout="constrained")
    axes = figure.subplots(1, len(names), squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        label, unit = _AXES[name]
        points = [(unit * x, unit * y) for x, y in summary[name]["bins"]]
        ends = [min(min(p) for p in points), max(max(p) for p in points)]
        axis.plot(ends, ends, color="0.6", lw=1)
        axis.plot(*zip(*points, strict=True), "o-")
        axis.set(
            xlabel=f"uncertainty of {label}", ylabel="error", title=f"covers {summary[name]['coverage']:.1%}"
        )
        if ends[0] > 0:
            axis.set(xscale="log", yscale="log")
        axis.grid(alpha=0.3)
    if title:
        figure.suptitle(title, fontsize=9)
    save_figure(figure, file)
