"""``make reliability``: the table says what was tried and what went wrong, and finished rows are kept."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def benchmark():
    spec = importlib.util.spec_from_file_location("reliability", ROOT / "benchmarks" / "reliability.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["reliability"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def attacked(monkeypatch, tmp_path, capsys):
    """Runs the benchmark with rows and tests of our own; returns its exit code and what it printed."""
    module = benchmark()
    monkeypatch.setattr(module, "ROOT", tmp_path)
    (tmp_path / "pimlip_zoo").mkdir()
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "kills.py").write_text("")

    def run(text, *words, **options):
        if text is not None:
            (tmp_path / "test_attack.py").write_text(text)
        attack = module.Attack(
            "one", "an attack", "nothing", ("test_attack.py",), side_by_side=False, **options
        )
        results = ["--results", str(tmp_path / "results.json"), "--page", str(tmp_path / "page.md")]
        monkeypatch.setattr(sys, "argv", ["reliability", *results, *words])
        code = module.main((attack,))
        return code, capsys.readouterr().out

    return run


GOOD = """
import pytest
def test_many(record_property):
    record_property("tried", 40)
def test_one(): pass
@pytest.mark.skip
def test_not_here(): pass
"""


def test_what_was_tried_is_counted_and_a_finished_row_is_kept(attacked, tmp_path):
    code, out = attacked(GOOD)
    assert code == 0
    assert "| an attack | nothing | 41 | 0 | as it should; 1 skipped |" in out
    assert "| an attack | nothing | 41 | 0 |" in (tmp_path / "page.md").read_text()
    assert "one: as before" in attacked(GOOD)[1]
    assert "one: as before" not in attacked(GOOD, "--seed", "3")[1]
    assert "one: as before" not in attacked(GOOD + "\n", "--seed", "3")[1]


def test_all_rows_together_end_within_forty_minutes():
    assert sum(attack.minutes for attack in benchmark().ATTACKS) <= 40


def test_what_went_wrong_is_said_and_tried_again(attacked, tmp_path):
    code, out = attacked("def test_it(): assert 1 == 2, 'broken'\n")
    assert code == 1
    assert "| 1 | 1 | test_it: " in out
    assert "broken" in out
    assert json.loads((tmp_path / "results.json").read_text())["one"]["failed"] == 1
    assert "one: as before" not in attacked("def test_it(): assert 1 == 2, 'broken'\n")[1]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import time\ndef test_it(): time.sleep(60)\n", "not finished in 0.03 minutes"),
        ("x = 1\n", "nothing was tried"),
        ("syntax error\n", "collection failure"),
    ],
)
def test_a_row_that_tried_nothing_is_not_well(attacked, text, said):
    code, out = attacked(text, minutes=0.03 if "sleep" in text else 1.0)
    assert code == 1
    assert said in out


def test_a_row_whose_tests_are_not_there_is_not_well(attacked):
    code, out = attacked(None)
    assert code == 1
    assert "not tried: there is no test_attack.py" in out
