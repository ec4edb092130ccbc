"""Several runs on one page: errors by data set, what differs, and their curves."""

import re
from dataclasses import replace

from test_report import CURVE, Elements, errors

from pimlip_zoo.report.compare import comparison_curves, render_comparison, write_comparison
from pimlip_zoo.report.html import ReportData


def run(name, value, **more):
    fields = {
        "name": name,
        "facts": {"Architecture": "nequip, small", "Steps": "100"},
        "tests": {"validation": errors(value)},
        "curve": CURVE,
        "changed": {"optimizer.lr": (value, 0.01), "seed": (1, 0)},
    }
    return ReportData(**{**fields, **more})


def test_the_page_shows_the_errors_of_all_runs_with_the_best_in_bold():
    page = render_comparison([run("first", 0.02), run("a <b>second</b>", 0.01)])
    Elements(page)
    assert "a &lt;b&gt;second&lt;/b&gt;" in page
    assert "<b>10.00</b>" in page
    assert "<b>20.00</b>" in page  # its RMSE
    assert "<td>20.00</td>" in page
    assert "width=device-width" in page


def test_errors_on_other_structures_are_not_ranked():
    first, second = run("first", 0.02), run("second", 0.01)
    same = [replace(one, structures={"validation": "1"}) for one in (first, second)]
    assert "<b>10.00</b>" in render_comparison(same)
    others = [same[0], replace(second, structures={"validation": "2"})]
    page = render_comparison(others)
    Elements(page)
    assert "<b>10.00</b>" not in page
    assert "The validation structures of the runs are not the same" in page


def test_only_options_that_differ_between_the_runs_are_listed():
    page = render_comparison([run("first", 0.02), run("second", 0.01)])
    assert "<code>optimizer.<wbr>lr</code>" in page
    assert "<code>seed</code>" not in page
    page = render_comparison([run("first", 0.02), run("second", 0.02, changed={})])
    assert re.search(r"<code>seed</code></td><td[^>]*>1</td><td[^>]*>0</td>", page)


def test_a_run_that_was_not_evaluated_on_a_set_has_a_dash():
    other = run("second", 0.01, tests={"test": errors(0.03)}, curve=[])
    page = render_comparison([run("first", 0.02), other])
    assert page.count("Errors on") == 2
    assert "–" in page


def test_runs_of_one_name_are_told_apart_and_nothing_to_show_is_left_out(tmp_path):
    bare = [ReportData(name="run"), ReportData(name="run")]
    write_comparison(bare, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    Elements(page)
    assert "run (2)" in page
    assert "Learning curves" not in page
    assert comparison_curves(["a", "b"], bare) is None


def test_the_command_compares_what_it_is_given(monkeypatch, tmp_path):
    from typer.testing import CliRunner

    from pimlip_zoo.cli import report

    monkeypatch.setattr(report, "_gather", lambda path: run(path.name, 0.01))
    file = tmp_path / "page.html"
    done = CliRunner().invoke(report.app, ["runs/a", "runs/b", "-o", str(file)])
    assert done.exit_code == 0, done.output
    assert "comparison of 2 runs" in done.output
    assert ">a</td>" in file.read_text()
