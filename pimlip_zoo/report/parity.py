"""Predicted against reference values, as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pimlip_zoo.datasets.readers.numpy_file import open_npz
from pimlip_zoo.errors import reading
from pimlip_zoo.files import replacing
from pimlip_zoo.report.figures import save_figure
from pimlip_zoo.written import milli

if TYPE_CHECKING:
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

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
    save_figure(parity_figure(pairs, title=title), file)


def parity_figure(pairs: Pairs, *, title: str = "", errors: Mapping[str, Any] | None = None) -> Figure:
    """The picture that :func:`parity_plot` writes; the points are pixels also in a vector format.

    Args:
        pairs: (reference, predicted) by quantity, in eV and Å.
        title: above the panels.
        errors: ``{"forces": {"mae", "rmse"}, ...}`` where the pairs are only a part of what was evaluated.
    """
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    names = [name for name in _LABELS if name in pairs]
    figure = Figure(figsize=(4.2 * len(names), 5.2), layout="constrained")
    axes = figure.subplots(2, len(names), squeeze=False, sharex="col", height_ratios=(3, 1))
    for column, name in enumerate(names):
        label, unit, factor, error_unit = _LABELS[name]
        reference, predicted = pairs[name]
        error = factor * (predicted - reference)
        low, high = float(min(reference.min(), predicted.min())), float(max(reference.max(), predicted.max()))
        pad = 0.03 * (high - low) + 1e-9
        top, bottom = axes[0, column], axes[1, column]
        bins = {"mincnt": 1, "cmap": "viridis", "linewidths": 0.1, "rasterized": True}
        square = (low - pad, high + pad, low - pad, high + pad)
        top.axline((low, low), slope=1, color="0.6", lw=0.8, zorder=0)
        top.hexbin(reference, predicted, gridsize=70, norm=LogNorm(), extent=square, **bins)
        top.set(
            xlim=(low - pad, high + pad), ylim=(low - pad, high + pad), ylabel=f"predicted {label} / {unit}"
        )
        mae, rmse = float(np.abs(error).mean()), float(np.sqrt(np.square(error).mean()))
        if errors is not None and errors.get(name):
            mae, rmse = factor * errors[name]["mae"], factor * errors[name]["rmse"]
        top.text(
            0.04,
            0.96,
            f"MAE {milli(mae / 1e3)} {error_unit}\nRMSE {milli(rmse / 1e3)} {error_unit}",
            transform=top.transAxes,
            va="top",
        )
        span = _span(np.abs(error))
        bottom.axhline(0, color="0.6", lw=0.8, zorder=0)
        below = (low - pad, high + pad, -span, span)
        bottom.hexbin(reference, error, gridsize=(70, 16), norm=LogNorm(), extent=below, **bins)
        for axis in (top.yaxis, bottom.xaxis):
            _plain_ticks(axis, low - pad, high + pad)
        bottom.set(ylim=(-span, span), xlabel=f"reference {label} / {unit}", ylabel=f"error / {error_unit}")
    figure.align_ylabels()
    if title:
        figure.suptitle(title, fontsize=9)
    return figure


def _span(sizes: NDArray[np.float64]) -> float:
    """How far the panel of errors reaches: to the largest, unless it is far beyond all but one in a thousand."""
    largest, usual = float(sizes.max()), float(np.quantile(sizes, 0.999))
    return 1.06 * min(largest, 2 * usual) + 1e-9


def _plain_ticks(axis: Axis, low: float, high: float) -> None:
    """Few ticks with whole numbers: total energies have many digits, and a number set apart is overlooked."""
    from matplotlib.ticker import MaxNLocator, ScalarFormatter

    axis.set_major_locator(MaxNLocator(4))
    axis.set_major_formatter(ScalarFormatter(useOffset=high - low < 1e-6 * max(abs(low), abs(high))))


def save_pairs(pairs: Mapping[str, Pairs], file: Path, *, most: int = 10_000) -> None:
    """Keep the values of several data sets for later pictures, of large sets a part chosen by chance.

    Args:
        pairs: by data set and quantity.
        file: ``.npz``.
        most: values of one quantity of one set.
    """
    arrays: dict[str, NDArray[Any]] = {"names": np.array(list(pairs), dtype=str)}
    for number, quantities in enumerate(pairs.values()):
        for quantity, (reference, predicted) in quantities.items():
            chosen: Any = slice(None)
            if len(reference) > most:
                chosen = np.sort(np.random.default_rng(0).choice(len(reference), most, replace=False))
            arrays[f"{number}:{quantity}"] = np.stack([reference[chosen], predicted[chosen]])
    with replacing(file) as temporary, temporary.open("wb") as opened:
        np.savez_compressed(opened, **arrays)  # type: ignore[arg-type]


def load_pairs(file: Path) -> dict[str, dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]]:
    """What :func:`save_pairs` wrote.

    Raises:
        InputError: when there is no such file, or it is damaged.
    """
    with reading(file), open_npz(file) as content:
        names = content["names"].tolist()
        result: dict[str, dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]] = {n: {} for n in names}
        for key in content.files:
            if key != "names":
                number, quantity = key.split(":")
                reference, predicted = content[key]
                result[names[int(number)]][quantity] = (reference, predicted)
    return result
