"""Every term of the loss can be watched, and its schedule counts optimiser steps."""

import csv

import pytest
from test_resume import run

from pimlip_zoo.errors import InputError
from pimlip_zoo.training.progress import validation_line

SETTINGS = [
    "data.train=builtin:ethanol-gfn2/train@:8",
    "data.valid=builtin:ethanol-gfn2/valid@:2",
    "data.batch_size=2",
    "model.channels=4",
    "model.l_max=1",
    "model.radial_hidden=[4]",
    "trainer.max_steps=4",
    "trainer.valid_every=1",
    "trainer.accumulate=2",
    "weak.terms.pitc_central.weight=0.3",
    "weak.terms.pitc_central.schedule.name=warm_up",
    "weak.terms.pitc_central.schedule.steps=4",
    "weak.teacher=ema",
]


def table(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_value_weight_and_schedule_of_each_term_are_watched_everywhere(tmp_path, monkeypatch, caplog):
    from lightning.pytorch import loggers

    from pimlip_zoo.training import module

    monkeypatch.setattr(module, "LOGGED_EVERY", 1)
    monkeypatch.setattr(loggers, "TensorBoardLogger", loggers.CSVLogger)
    monkeypatch.setattr("pimlip_zoo.experiment.trainer.check_loggers", lambda names: None)
    with caplog.at_level("INFO", "pimlip_zoo"):
        run(tmp_path, settings=[*SETTINGS, "trainer.tensorboard=true", "loss.forces.weight=7"])
    rows = table(tmp_path / "metrics.csv")
    # Two batches make a step, and the schedule does not know it.
    assert [float(row["factor_pitc_central"]) for row in rows] == [0.0, 0.25, 0.5, 0.75]
    for row in rows:
        assert float(row["weight_pitc_central"]) == pytest.approx(0.3 * 7)
        assert (float(row["weight_forces"]), float(row["factor_forces"])) == (7.0, 1.0)
        parts = [name.removeprefix("loss_") for name in row if name.startswith("loss_")]
        total = 0.0
        for name in parts:
            total += float(row[f"loss_{name}"]) * float(row[f"weight_{name}"]) * float(row[f"factor_{name}"])
        assert total == pytest.approx(float(row["loss"]), rel=1e-5)
    assert float(rows[0]["loss_pitc_central"]) == 0.0 < float(rows[1]["loss_pitc_central"])
    logged = table(next(tmp_path.rglob("tensorboard/metrics.csv")))
    assert {row["factor_pitc_central"] for row in logged if row["loss"]} >= {"0.0", "0.25", "0.5", "0.75"}
    lines = [line for line in caplog.messages if line.startswith("step ") and "  E " in line]
    assert "pitc_central 2.1*0.75*" in lines[-1]
    assert ", forces 7*" in lines[-1]


def test_a_resumed_run_with_another_loss_has_its_columns_too(tmp_path):
    run(tmp_path, settings=[*SETTINGS, "trainer.max_steps=2"])
    before = table(tmp_path / "metrics.csv")
    (tmp_path / "metrics.csv").write_text(
        "".join(
            ",".join(line.split(",")[:3]) + "\n"
            for line in (tmp_path / "metrics.csv").read_text().splitlines()
        )
    )
    run(tmp_path, settings=SETTINGS, resume=True)
    with pytest.raises(InputError, match="written with other losses"):
        run(tmp_path, settings=[s for s in SETTINGS if "ema" not in s], resume=True)
    rows = table(tmp_path / "metrics.csv")
    assert [row["step"] for row in rows] == ["1", "2", "3", "4"]
    assert [bool(row["loss_pitc_central"]) for row in rows] == [False, False, True, True]
    assert set(rows[0]) == set(before[0])


def test_a_term_without_a_schedule_is_shown_without_its_factor():
    values = {"loss": 3.0, "loss_forces": 0.02, "weight_forces": 100.0, "factor_forces": 1.0}
    assert validation_line(values, ["forces", "absent"]) == "loss 3 (forces 100*0.02)"
