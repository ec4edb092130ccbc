"""Pictures as files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pimlip_zoo.errors import InputError
from pimlip_zoo.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def save_figure(figure: Figure, file: Path) -> None:
    """Write a picture, all of it or nothing.

    Args:
        figure: the picture.
        file: .png, .pdf or .svg.

    Raises:
        InputError: for a file type that cannot be drawn, or a place that cannot be written.
    """
    if file.suffix.lower() not in (".png", ".pdf", ".svg"):
        raise InputError(f"cannot draw {file.suffix or 'this'}", file=file, hint="use .png, .pdf or .svg")
    with replacing(file) as temporary:
        figure.savefig(temporary, dpi=150)
