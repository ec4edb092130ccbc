"""Matplotlib figures inside of a page: a picture for each panel, beside each other, or one below the other on a phone.

One wide picture would be too small to read on a narrow screen, or have to be scrolled.
"""

from __future__ import annotations

import base64
import io
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

_MARGIN, _GAP = 0.04, 1.1
"""Inches around a panel; percent of the width between panels."""


def pictures(figure: Figure, alternative: str, *, narrow: bool = False) -> str:
    """The panels of a figure, each a drawing inside of the file; axes that share x, one above the other, are one.

    Args:
        figure: of matplotlib.
        alternative: what it shows, for those who do not see it.
        narrow: leave space beside it.
    """
    from matplotlib.transforms import Bbox

    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # the panels stay where they are while the others are hidden
    panels = _panels(figure)
    boxes = [_box(figure, panel) for panel in panels]
    parts = []
    for panel, box in zip(panels, boxes, strict=True):
        for axis in figure.axes:
            axis.set_visible(axis in panel)
        name = escape(f"{alternative}: {panel[0].get_ylabel() or panel[0].get_title()}", quote=True)
        line = [other for other in boxes if other.y0 < 0.5 * (box.y0 + box.y1) < other.y1]
        width = 100.0 * box.width / sum(other.width for other in line) - _GAP
        of_line = Bbox([[box.x0, min(other.y0 for other in line)], [box.x1, max(other.y1 for other in line)]])
        source = f"data:image/svg+xml;base64,{_drawn(figure, of_line)}"
        parts.append(f'<img alt="{name}" style="width: {width:.1f}%" src="{source}">')
    kind = ' class="narrow"' if narrow else ""
    return f"<figure{kind}>{''.join(parts)}</figure>"


def _panels(figure: Figure) -> list[list[Axes]]:
    panels: list[list[Axes]] = []
    for axis in figure.axes:
        if not axis.axison:
            continue
        shared = axis.get_shared_x_axes()
        own = next((panel for panel in panels if shared.joined(panel[0], axis)), None)
        if own is None:
            panels.append([axis])
        else:
            own.append(axis)
    return panels


def _box(figure: Figure, panel: list[Axes]) -> Bbox:
    """Inches; ``axes`` with all that is written around them."""
    from matplotlib.transforms import Bbox

    found = [box for axis in panel if (box := axis.get_tightbbox()) is not None]
    return Bbox.union(found).transformed(figure.dpi_scale_trans.inverted()).padded(_MARGIN)


def _drawn(figure: Figure, box: Bbox) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", dpi=180, transparent=True, bbox_inches=box, metadata={"Date": None})
    return base64.b64encode(buffer.getvalue()).decode()
