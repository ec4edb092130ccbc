"""Tables in the documentation: each stands between two marks, and a script replaces what is there.

The marks of a table are `<!-- NAME: begin -->` and `<!-- NAME: end -->`. The rows that tables are made of lie in files
of JSON lines, one a run.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def between(text: str, mark: str, lines: Iterable[str]) -> str:
    """The text with these lines between its marks."""
    begin, end = (f"<!-- {mark}: {side} -->" for side in ("begin", "end"))
    if end not in text:
        raise SystemExit(f"there is no {end}: no place for the table")
    before, rest = text.split(begin)
    return "\n".join([f"{before}{begin}", *lines, f"{end}{rest.split(end)[1]}"])


def write_between(page: Path, mark: str, lines: Iterable[str], *, new: str | None = None) -> None:
    """Put lines between the marks of a page.

    Args:
        page: the file.
        mark: name of the place.
        lines: what stands there.
        new: how a page begins that is not there yet; the place is then made at its end, as on a page that has none.
    """
    from pimlip_zoo.files import write_text

    text = page.read_text(encoding="utf-8") if new is None or page.exists() else new
    if new is not None and f"<!-- {mark}: end -->" not in text:
        text += f"\n<!-- {mark}: begin -->\n<!-- {mark}: end -->\n"
    write_text(page, between(text, mark, lines))


def read_rows(file: Path) -> list[dict[str, Any]]:
    """The rows of a file; none where there is none."""
    return [json.loads(text) for text in file.read_text().splitlines()] if file.exists() else []


def add_row(file: Path, row: dict[str, Any]) -> None:
    """Add the row of a run that has ended."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as stream:
        stream.write(json.dumps(row) + "\n")
