"""How the errors fell over a training, as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANELS = (
    ("forces", "forces / meV/Å"),
    ("energy", "energy / meV/atom"),
    ("stress", "stress / meV/Å³"),
)
"""Quantity and label of the panels of learning curves."""

Row = Mapping[str, float]


def learning_curves(rows: Sequence[Row]) -> Figure:
    """Validation errors by step, one panel per quantity that was validated, and the training loss with its terms.

    Args:
        rows: of ``metrics.csv``, in eV and Å; values that are missing are left out.
    """
    from matplotlib.figure import Figure

    panels = [(name, label) for name, label in PANELS if points(rows, f"valid_{name}_mae")[0]]
    count = len(panels) + 1
    figure = Figure(figsize=(10.0, 2.7), layout="constrained")
    axes = figure.subplots(1, count, squeeze=False)[0]
    for axis, (name, label) in zip(axes, panels, strict=False):
        for kind, style in (("rmse", {"color": "#9aa5b1"}), ("mae", {"color": "#1f5fa8"})):
            steps, values = points(rows, f"valid_{name}_{kind}")
            axis.plot(steps, [1e3 * value for value in values], lw=1.4, label=kind.upper(), **style)
        axis.set_ylabel(label)
        axis.legend(frameon=False, fontsize=8)
        finish(axis)
    steps, values = points(rows, "loss")
    axes[-1].plot(steps, values, lw=1.1, color="#b3541e", label="all")
    for name, share in _terms(rows).items():
        axes[-1].plot(*share, lw=0.8, label=name.replace("_", " "))
    if len(axes[-1].lines) > 1:
        axes[-1].legend(frameon=False, fontsize=7)
    axes[-1].set_ylabel("training loss")
    finish(axes[-1])
    return figure


def _terms(rows: Sequence[Row]) -> dict[str, tuple[list[float], list[float]]]:
    """What each term adds to the loss, by step: value times weight times the factor of its schedule."""
    shares: dict[str, tuple[list[float], list[float]]] = {}
    for row in rows:
        for column in row:
            kind, _, name = column.partition("_")
            if (
                kind == "loss"
                and name
                and (share := row[column] * row[f"weight_{name}"] * row[f"factor_{name}"])
            ):
                steps, values = shares.setdefault(name, ([], []))
                steps.append(row["step"])
                values.append(share)
    return shares


def points(rows: Sequence[Row], column: str) -> tuple[list[float], list[float]]:
    """Steps and values of a column, where it has any."""
    known = [(row["step"], row[column]) for row in rows if column in row]
    return [step for step, _ in known], [value for _, value in known]


def finish(axis: Axes) -> None:
    """Logarithmic errors over steps, without boxes."""
    import matplotlib.ticker as mtick

    axis.set_xlabel("step")
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter(mtick.StrMethodFormatter("{x:g}"))
    low, high = axis.get_ylim()
    between = (2.0, 5.0) if high < 2000 * low else ()  # labels between the decades only where there is room
    axis.yaxis.set_minor_locator(mtick.LogLocator(subs=between))
    axis.yaxis.set_minor_formatter(mtick.StrMethodFormatter("{x:g}"))
    axis.xaxis.set_major_locator(mtick.MaxNLocator(4, integer=True))
    axis.xaxis.set_major_formatter(mtick.StrMethodFormatter("{x:,.0f}"))
    axis.tick_params(labelsize=8, which="both")
    axis.grid(visible=True, which="major", color="0.92", lw=0.8)
    axis.spines[["top", "right"]].set_visible(False)
