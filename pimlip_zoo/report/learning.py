"""How the errors fell over a training, as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

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
    for number, (name, term) in enumerate(_terms(rows).items()):
        seen = [point for point in term if point.share]
        shares = [point.share for point in seen]
        axes[-1].plot(
            [point.step for point in seen], shares, lw=0.8, color=f"C{number}", label=_written(name)
        )
    if len(axes[-1].lines) > 1:
        axes[-1].legend(frameon=False, fontsize=7)
    axes[-1].set_ylabel("training loss")
    finish(axes[-1])
    return figure


def loss_terms(rows: Sequence[Row]) -> Figure | None:
    """Each term of the loss by itself, and what it is multiplied by; their products are in :func:`learning_curves`.

    Args:
        rows: of ``metrics.csv``.

    Returns:
        None where the rows tell of no terms.
    """
    from matplotlib.figure import Figure

    terms = _terms(rows)
    if not terms:
        return None
    figure = Figure(figsize=(10.0, 2.7), layout="constrained")
    values, factors = figure.subplots(1, 2)
    for number, (name, points) in enumerate(terms.items()):
        look = {"color": f"C{number}", "lw": 1.1, "label": _written(name)}
        seen = [point for point in points if point.value]  # a term whose factor is 0 is not evaluated
        values.plot([point.step for point in seen], [point.value for point in seen], **look)
        used = [point for point in points if point.weight * point.factor]
        label = f"{_written(name)}: weight {points[-1].weight:g}"
        products = [point.weight * point.factor for point in used]
        factors.plot([point.step for point in used], products, **{**look, "label": label})
    values.set_ylabel("value of the term")
    factors.set_ylabel("weight × schedule")
    for axis in (values, factors):
        finish(axis)
    # Beside the panels: within them it would lie on constant weights.
    factors.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


class _Point(NamedTuple):
    """A term of the loss at a step."""

    step: float
    value: float
    weight: float
    factor: float
    """Of its schedule."""

    @property
    def share(self) -> float:
        """What it adds to the loss."""
        return self.value * self.weight * self.factor


def _terms(rows: Sequence[Row]) -> dict[str, list[_Point]]:
    """The terms by name, in the order in which the table first has them, with every row that tells all of one."""
    terms: dict[str, list[_Point]] = {}
    for row in rows:
        for column in row:
            kind, _, name = column.partition("_")
            weight, factor = row.get(f"weight_{name}"), row.get(f"factor_{name}")
            if kind == "loss" and name and weight is not None and factor is not None:
                terms.setdefault(name, []).append(_Point(row["step"], row[column], weight, factor))
    return terms


def _written(term: str) -> str:
    return term.replace("_", " ")


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
