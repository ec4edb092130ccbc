"""Reports on a telephone: nothing is wider than the screen but tables, which scroll within their box."""

import base64
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import pytest
from matplotlib.figure import Figure

from pimlip_zoo.report.curve import curve_figure
from pimlip_zoo.report.html import ReportData, breakable, render_curve, render_report
from pimlip_zoo.report.pictures import pictures
from pimlip_zoo.report.style import CSS

PHYSICS = {
    "structures": {
        "bulk:Cu": {
            "formula": "Cu",
            "kind": "crystal",
            "kind_because": "periodic",
            "properties": {"lattice": {"status": "computed", "values": {"a": {"value": 3.58, "unit": "Å"}}}},
        }
    }
}


class Tables(HTMLParser):
    """The class of what each table stands in."""

    def __init__(self, text):
        super().__init__()
        self.last, self.boxes = None, []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag == "table":
            self.boxes.append(self.last)
        self.last = dict(attrs).get("class")


def curve_page():
    rows = [
        {"test": "a", "weak": "none", "size": size, "energy_per_atom_rmse": 0.01, "forces_rmse": 0.2 / size}
        for size in (10, 20)
    ]
    return render_curve(
        "curve", [["test", "weak"], ["builtin:ethanol-gfn2/test_300K", "none"]], (), curve_figure(rows)
    )


@pytest.mark.parametrize("page", [render_report(ReportData(name="x", physics=PHYSICS)), curve_page()])
def test_the_page_has_the_width_of_the_screen_and_tables_scroll_in_their_box(page):
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in page
    boxes = Tables(page).boxes
    assert boxes
    assert set(boxes) == {"scroll"}
    assert re.search(r"\.scroll \{ overflow-x: auto;", CSS)
    assert "min-width: 560px" not in CSS
    phone = CSS.partition("@media (max-width: 640px)")[2]
    assert "figure img { width: 100% !important; }" in phone
    sizes = [float(size) for size in re.findall(r"font(?:-size)?: ([\d.]+)px", CSS)]
    assert min(sizes) >= 12.5


def test_each_panel_is_a_picture_of_its_own_and_a_line_of_them_fills_the_width():
    figure = Figure(figsize=(10, 5), layout="constrained")
    axes = figure.subplots(2, 3)
    for number, axis in enumerate(axes.flat):
        axis.plot([0, 1], [0, number])
        axis.set_ylabel(f"y{number}")
    axes[1, 2].set_axis_off()
    text = pictures(figure, "what")
    assert re.findall(r'alt="what: (y\d)"', text) == ["y0", "y1", "y2", "y3", "y4"]
    widths = [float(width) for width in re.findall(r"width: ([\d.]+)%", text)]
    assert 95 < sum(widths[:3]) <= 98
    for data in re.findall(r"base64,([^\"]+)", text):
        box = ET.fromstring(base64.b64decode(data)).attrib["viewBox"].split()
        assert 0.2 * 720 < float(box[2]) < 0.45 * 720


def test_axes_that_share_x_stay_together():
    figure = Figure(layout="constrained")
    axes = figure.subplots(2, 2, sharex="col")
    for axis in axes.flat:
        axis.plot([0, 1])
    assert pictures(figure, "both").count("<img") == 2


def test_names_break_at_their_joints_and_numbers_do_not():
    assert breakable("equation_of_state.volume") == "equation_<wbr>of_<wbr>state.<wbr>volume"
    assert breakable("3.5847 & -0.2") == "3.5847 &amp; -0.2"
    assert "none" in curve_page()


def test_columns_without_any_value_are_left_out():
    assert "<th>reference</th>" not in render_report(ReportData(name="x", physics=PHYSICS))
    compared = {"value": 3.58, "unit": "Å", "reference": 3.59, "error": -0.01}
    PHYSICS["structures"]["bulk:Cu"]["properties"]["lattice"]["values"]["a"] = compared
    assert "<th>reference</th>" in render_report(ReportData(name="x", physics=PHYSICS))


def test_errors_within_a_decade_have_numbers_at_their_axis():
    rows = [
        {"test": "a", "weak": "none", "size": size, "energy_per_atom_rmse": 3.4 / size, "forces_rmse": 0.2}
        for size in (10, 12)
    ]
    figure = curve_figure(rows)
    figure.draw_without_rendering()
    for axis in figure.axes[:1]:
        low, high = axis.get_ylim()
        labels = [*axis.yaxis.get_majorticklabels(), *axis.yaxis.get_minorticklabels()]
        assert [text for text in labels if low <= text.get_position()[1] <= high and text.get_text()]
