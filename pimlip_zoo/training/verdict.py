"""Was a run long enough, and did it learn by heart? What its learning curve and its errors say at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pimlip_zoo.errors import plain_number

_FEWEST = 6
"""Validations before anything is said."""
_FALLS = 0.03
"""Share by which validation still falls in the last tenth of a run that is too short."""
_STILL = 0.7
"""A run whose best weights are from before this share of it has not fallen since."""
_BY_HEART = 1 / 3
"""Training error over validation error below which a run has learnt its structures by heart."""

Rows = Sequence[Mapping[str, float]]
Errors = Mapping[str, Mapping[str, Any]]


def verdict_on(rows: Rows, errors: Errors) -> list[str]:
    """Sentences on the length of a run and on learning by heart; none where there is nothing to say.

    Args:
        rows: of ``metrics.csv``.
        errors: of the best weights by data set, ``training`` and ``validation`` among them.
    """
    return [*_length(rows), *_by_heart(errors)]


def _length(rows: Rows) -> list[str]:
    quantity = next((q for q in ("forces", "energy") if rows and f"valid_{q}_rmse" in rows[-1]), None)
    if quantity is None:
        return []
    curve = [(row["step"], row[f"valid_{quantity}_rmse"]) for row in rows if f"valid_{quantity}_rmse" in row]
    if len(curve) < _FEWEST:
        return []
    last = curve[-1][0]
    best_step, best = min(curve, key=lambda point: point[1])
    before = min((error for step, error in curve if step <= 0.9 * last), default=best)
    fall = 1.0 - best / before if before > 0 else 0.0
    what = "of forces" if quantity == "forces" else "of energies"
    if fall > _FALLS:
        return [
            f"the validation error {what} still falls, by {100 * fall:.0f} % in the last tenth: train longer"
        ]
    if best_step < _STILL * last and not _falls_on_average(rows, quantity, best_step):
        text = f"the validation error {what} has not fallen since step {best_step:,.0f} of {last:,.0f}"
        return [f"{text}: more structures, a larger model or weak supervision may help, more steps will not"]
    return []


def _falls_on_average(rows: Rows, quantity: str, since: float) -> bool:
    """Whether the mean absolute error has fallen since a step: a few bad atoms can hold the RMSE where it is."""
    column = f"valid_{quantity}_mae"
    then = [row[column] for row in rows if column in row and row["step"] == since]
    after = [row[column] for row in rows if column in row and row["step"] > since]
    return bool(then and after) and min(after) < (1.0 - _FALLS) * then[0]


def _by_heart(errors: Errors) -> list[str]:
    train, valid = errors.get("training") or {}, errors.get("validation") or {}
    for quantity, factor, unit in (("forces", 1e3, "meV/Å"), ("energy_per_atom", 1e3, "meV/atom")):
        known, new = train.get(quantity), valid.get(quantity)
        if not known or not new:
            continue
        if known["rmse"] < _BY_HEART * new["rmse"]:
            name = quantity.partition("_")[0]
            seen, unseen = factor * known["rmse"], factor * new["rmse"]
            text = f"the RMSE of {name} is {plain_number(seen)} {unit} on training structures, "
            text += f"{plain_number(unseen)} on others"
            return [f"learnt by heart: {text}; more structures or weak supervision help, more steps do not"]
        return []
    return []
