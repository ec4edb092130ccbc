"""The accuracy benchmark: what it runs is well formed, and its table says what the results say."""

import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from pimlip_zoo.config import load_config
from pimlip_zoo.datasets.readers import parse_spec

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def accuracy():
    spec = importlib.util.spec_from_file_location("accuracy", ROOT / "benchmarks" / "accuracy.py")
    module = sys.modules["accuracy"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["accuracy"]


@pytest.fixture
def data(accuracy, tmp_path):
    """A folder with the files that the studies name; there is nothing in them."""
    for study in accuracy.STUDIES.values():
        for spec in (study.train, study.valid, *study.tests.values()):
            for part in spec.split(","):
                path = Path(part.split("@")[0].format(tmp_path))
                path.parent.mkdir(exist_ok=True)
                path.touch()
    return tmp_path


def options(**more):
    defaults = {"model": "nequip", "preset": "small", "seed": 1, "steps": None}
    return SimpleNamespace(**defaults, threads=1, device="cpu", set=[], **more)


def result(**more):
    errors = {"mae": 0.001, "rmse": 0.00234}
    test = {"energy": errors, "energy_per_atom": errors, "forces": {"mae": 0.004, "rmse": 0.00567}}
    return {
        "dataset": "acac",
        "model": "nequip",
        "preset": "small",
        "seed": 0,
        "steps": 500,
        "of_steps": 1000,
        "seconds": 5400,
        "parameters": 12345,
        "settings": {"seed": 0, "model.name": "nequip", "trainer.max_steps": 1000, "trainer.threads": 1},
        "fitted": {**test, "n_structures": 50},
        "tests": {"300 K": test, "600 K": test},
        "curve": [
            {"step": step, "seconds": 1.0, "valid_energy_rmse": 0.1, "valid_forces_rmse": 1.0 / step}
            for step in (100.0, 150.0, 200.0, 500.0)
        ],
        "machine": "a computer",
        **more,
    }


def test_every_study_is_a_valid_configuration(accuracy, data):
    for study in accuracy.STUDIES.values():
        config = load_config(None, accuracy.training_settings(study, options(data=data)))
        assert config.trainer.max_steps == study.steps
        for spec in (config.data.train, config.data.valid, *study.tests.values()):
            assert parse_spec(spec.format(data))


def test_training_and_validation_structures_are_apart_and_together_all(accuracy, data):
    for name in ("acac", "3bpa", "mlearn-Si"):
        study = accuracy.STUDIES[name]
        specs = f"{study.train},{study.valid}".replace("{}", str(data))
        parts = [set(range(100)[source.frames]) for source in parse_spec(specs)]
        assert sum(len(part) for part in parts) == 100
        assert set.union(*parts) == set(range(100))
        assert len(parts[-1]) == 10


def test_without_the_data_a_run_is_skipped_with_a_line(accuracy, capsys, monkeypatch, tmp_path):
    for given in ([], ["--data", str(tmp_path)]):
        monkeypatch.setattr(
            "sys.argv", ["accuracy.py", "run", "--dataset", "acac", "--model", "mace", *given]
        )
        assert accuracy.main() == accuracy.SKIPPED
        assert capsys.readouterr().err.startswith("skipped acac: ")


def test_the_table_stands_between_its_markers_and_is_honest_about_steps(accuracy, tmp_path):
    docs = tmp_path / "benchmarks.md"
    begin, end = "<!-- accuracy table: begin -->", "<!-- accuracy table: end -->"
    docs.write_text(f"before\n{begin}\nwhat was there\n{end}\nafter\n")
    for _ in range(2):  # writing it again changes nothing
        accuracy.write_table(docs, [result()])
    text = docs.read_text()
    assert text.startswith(f"before\n{begin}\n")
    assert text.endswith(f"{end}\nafter\n")
    assert "what was there" not in text
    assert "| nequip, small, seed 0 | 2.34 | 5.67 | 2.34 | 5.67 | 12,345 | 500 of 1,000 | 1.5 h |" in text
    assert "NequIP, published" in text
    assert "100: 10.0, 200: 5.0, 500: 2.0; of 50 training structures in the end: 5.7" in text
    assert "a computer" in text
    assert "Not run yet." in text


def test_a_row_says_what_is_not_as_in_the_study(accuracy):
    settings = dict(accuracy.training_settings(accuracy.STUDIES["acac"], options(data="DATA")))
    plain = {**result(), "settings": settings}
    assert accuracy.label(plain) == "nequip, small, seed 0"
    more = {"optimizer.name": "muon", "optimizer.lr": 0.02, "model.channels": 7}
    changed = {**plain, "settings": {**settings, **more}}
    assert accuracy.label(changed) == "nequip, small, muon, learning rate 0.02, model.channels 7, seed 0"


def test_a_page_without_a_place_for_the_table_is_left_alone(accuracy, tmp_path):
    docs = tmp_path / "page.md"
    docs.write_text("nothing")
    with pytest.raises(SystemExit, match="no place for the table"):
        accuracy.write_table(docs, [])
    assert docs.read_text() == "nothing"


def test_the_committed_table_is_the_one_of_the_committed_results(accuracy, tmp_path):
    page = ROOT / "docs" / "results" / "benchmarks.md"
    copy = tmp_path / "benchmarks.md"
    copy.write_text(page.read_text())
    accuracy.write_table(copy, accuracy.load_results(accuracy.RESULTS))
    assert copy.read_text() == page.read_text()
    for path in accuracy.RESULTS.glob("*.json"):
        assert json.loads(path.read_text())["dataset"] in accuracy.STUDIES
