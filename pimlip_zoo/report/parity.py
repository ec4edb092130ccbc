"""Predicted against reference values, as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pimlip_zoo.errors import InputError

__all__ = ["parity_plot"]

_LABELS = {
    "energy_per_atom": ("energy", "eV/atom", 1e3, "meV/atom"),
    "forces": ("forces", "eV/Å", 1e3, "meV/Å"),
    "stress": ("stress", "eV/Å³", 1e3, "meV/Å³"),
}

Pairs = Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]]


def parity_plot(pairs: Pairs, file: Path, *, title: str = "") -> None:
    """Draw one panel per quantity: prediction against reference, errors below, density in colour.

    Args:
        pairs: (reference, predicted) by quantity, in eV and Å.
        file: .png, .pdf or .svg.
        title: above the panels.

    Raises:
        InputError: for a file type that cannot be drawn.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.colors import LogNorm

    if file.suffix.lower() not in (".png", ".pdf", ".svg"):
        raise InputError(f"cannot draw {file.suffix or 'this'}", file=file, mend="use .png, .pdf or .svg")
    names = [name for name in _LABELS if name in pairs]
    figure, axes = plt.subplots(
        2,
        len(names),
        figsize=(4.2 * len(names), 5.2),
        squeeze=False,
        sharex="col",
        height_ratios=(3, 1),
        layout="constrained",
    )
    for column, name in enumerate(names):
        label, unit, factor, error_unit = _LABELS[name]
        reference, predicted = pairs[name]
        error = factor * (predicted - reference)
        low, high = float(min(reference.min(), predicted.min())), float(max(reference.max(), predicted.max()))
        pad = 0.03 * (high - low) + 1e-9
        top, bottom = axes[0, column], axes[1, column]
        bins = {"gridsize": 70, "mincnt": 1, "norm": LogNorm(), "cmap": "viridis", "linewidths": 0.1}
        top.axline((low, low), slope=1, color="0.6", lw=0.8, zorder=0)
        top.hexbin(reference, predicted, extent=(low - pad, high + pad, low - pad, high + pad), **bins)
        top.set(
            xlim=(low - pad, high + pad), ylim=(low - pad, high + pad), ylabel=f"predicted {label} / {unit}"
        )
        top.text(
            0.04,
            0.96,
            f"MAE {np.abs(error).mean():.2f} {error_unit}\nRMSE {np.sqrt(np.square(error).mean()):.2f} {error_unit}",
            transform=top.transAxes,
            va="top",
        )
        span = float(np.quantile(np.abs(error), 0.999)) + 1e-9
        bottom.axhline(0, color="0.6", lw=0.8, zorder=0)
        bottom.hexbin(
            reference, error, extent=(low - pad, high + pad, -span, span), **{**bins, "gridsize": (70, 16)}
        )
        bottom.locator_params(axis="x", nbins=5)
        bottom.set(ylim=(-span, span), xlabel=f"reference {label} / {unit}", ylabel=f"error / {error_unit}")
    figure.align_ylabels()
    figure.suptitle(title, fontsize=9)
    temporary = file.with_name(f".{file.stem}.tmp{file.suffix}")
    figure.savefig(temporary, dpi=150)
    plt.close(figure)
    temporary.replace(file)
