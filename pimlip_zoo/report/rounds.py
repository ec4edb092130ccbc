"""Rounds of sampling, labelling and training as one HTML file: what was bought, why, and what it brought."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any

from pimlip_zoo.report.html import page, section, table
from pimlip_zoo.report.pictures import pictures

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Bought:
    """A structure that was chosen."""

    formula: str
    origin: str
    """Where it is from: temperature, trajectory, name."""
    gain: float | None
    """What it was expected to bring, in the acquisition's unit."""
    energy: float | None
    """eV, the label; None: it has none."""
    largest: float | None
    """eV/Å, the largest force on an atom."""
    failure: str = ""


@dataclass(frozen=True)
class RoundStory:
    """What happened in a round."""

    number: int
    acquisition: str
    unit: str
    """Of the gains."""
    pool: int
    usable: int
    left_out: Mapping[str, int] = field(default_factory=dict)
    """How many structures of the pool, by the reason."""
    bought: Sequence[Bought] = ()
    """In the order of choice."""


def render_rounds(
    name: str, rows: Sequence[Mapping[str, Any]], stories: Sequence[RoundStory], plot: Figure | None
) -> str:
    """The HTML text.

    Args:
        name: of the folder.
        rows: as ``rounds.json`` has them.
        stories: of the same rounds.
        plot: error against labels.
    """
    figure = pictures(plot, "Errors against labels") if plot is not None else ""
    return page(
        name,
        "pimlip-zoo rounds",
        (),
        [
            section("Rounds", _table(rows)),
            section("Errors by number of labels", figure),
            section("Structures that were bought", "".join(_story(story) for story in stories)),
        ],
    )


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    head = ["round", "chosen by", "labels", "failed"]
    head += ["energy RMSE<small>meV/atom</small>", "force RMSE<small>meV/Å</small>", "on"]
    head += ["uncertainty<small>meV/Å, forces of the pool</small>"]
    body = [
        [
            *(escape(str(row[key])) for key in ("round", "acquisition", "labels", "failures")),
            *(_milli(row.get(key)) for key in ("energy", "forces")),
            escape(str(row["test"])),
            _milli(row.get("uncertainty")),
        ]
        for row in rows
    ]
    return table(head, body)


def _story(story: RoundStory) -> str:
    left = "; ".join(f"{escape(reason)} ({count})" for reason, count in story.left_out.items())
    note = f"{len(story.bought)} of {story.usable} usable structures by {escape(story.acquisition)}"
    note += f"; {story.pool - story.usable} of the pool's {story.pool} were left out: {left}" if left else ""
    head = ["", "structure", "from", f'expected to bring<small class="words">{escape(story.unit)}</small>']
    head += ["energy<small>eV</small>", "largest force<small>eV/Å</small>", "label"]
    rows = []
    for rank, one in enumerate(story.bought, start=1):
        rows.append(
            [
                str(rank),
                escape(one.formula),
                escape(one.origin),
                _number(one.gain, ".4g"),
                _number(one.energy, ".4f"),
                _number(one.largest, ".2f"),
                escape(one.failure) if one.failure else "yes",
            ]
        )
    return f'<h3>Round {story.number}</h3><p class="note">{note}.</p>' + table(head, rows)


def _milli(value: float | None) -> str:
    return _number(None if value is None else 1e3 * value, ".1f")


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form).replace("-", "−")
