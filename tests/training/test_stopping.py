"""Runs end when they should: without improvement, out of time, at the last step."""

import csv
import time
from collections import deque
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch

from pimlip_zoo import experiment
from pimlip_zoo.config import load_config, parse_settings
from pimlip_zoo.errors import InputError
from pimlip_zoo.experiment.ended import steps_missing
from pimlip_zoo.training.checkpoint import load_potential

SETTINGS = [
    "data.train=builtin:ethanol-gfn2/train@:20",
    "data.valid=builtin:ethanol-gfn2/valid@:5",
    "model.channels=4",
    "model.radial_hidden=[4]",
]


def run(folder, *more):
    return experiment.train(experiment.prepare(load_config(None, parse_settings([*SETTINGS, *more]))), folder)


def test_a_run_that_no_longer_improves_stops_early(tmp_path):
    """A learning rate of almost nothing improves nothing that float32 can see."""
    outcome = run(
        tmp_path,
        "optimizer.lr=1e-12",
        "trainer.patience=2",
        "trainer.valid_every=3",
        "trainer.max_steps=300",
        "trainer.ema_decay=0",
    )
    assert outcome.steps < 30
    assert steps_missing(tmp_path) is None  # it has ended
    assert (tmp_path / "checkpoints" / "best.ckpt").exists()


def test_a_run_ends_when_its_time_is_over(tmp_path):
    started = time.monotonic()
    outcome = run(tmp_path, "trainer.max_time=2s", "trainer.max_steps=100000", "trainer.valid_every=20")
    assert outcome.steps < 100000
    assert steps_missing(tmp_path) is None  # it has ended
    assert time.monotonic() - started < 60
    assert load_potential(tmp_path).species == ("H", "C", "O")


def test_a_run_whose_folder_is_moved_while_it_writes_a_checkpoint_ends(tmp_path, monkeypatch):
    """Lightning makes the folder again, and the run would go on in it."""
    folder, moved = tmp_path / "run", tmp_path / "moved"
    write = pl.Trainer.save_checkpoint

    def move_and_write(self, *arguments, **more):
        if not moved.exists():
            folder.rename(moved)
        write(self, *arguments, **more)

    monkeypatch.setattr(pl.Trainer, "save_checkpoint", move_and_write)
    with pytest.raises(InputError, match="it was moved or deleted") as caught:
        run(folder, "trainer.valid_every=3", "trainer.max_steps=300")
    assert str(folder) in str(caught.value)
    assert (moved / "config.yaml").exists()


@pytest.mark.parametrize("name", ["cosine", "linear", "exponential"])
def test_a_run_that_ends_by_its_time_ends_at_the_final_rate(tmp_path, name):
    """Rates at the last step of a run of two seconds whose steps would take hours."""
    outcome = run(
        tmp_path,
        "trainer.max_time=2s",
        "trainer.max_steps=1000000",
        "trainer.valid_every=100000",
        "optimizer.lr=0.01",
        f"schedule.name={name}",
        "schedule.warmup_steps=0",
        "schedule.final=0.01",
        "schedule.shorter_power=0",
    )
    assert 1 < outcome.steps < 1000000
    with (tmp_path / "metrics.csv").open() as file:
        *_, row = csv.DictReader(file)
    assert float(row["learning_rate"]) == pytest.approx(1e-4)
    assert int(row["step"]) == outcome.steps


def looked_ahead(power, most, seconds_per_step=1.0, budget=500.0, total=2000):
    """The clock of a run of so many steps, after those of the warm-up and of the measurement."""
    from pimlip_zoo.training.callbacks import TimeLimit
    from pimlip_zoo.training.schedule import RunClock

    clock = RunClock(total, start=50)
    limit = TimeLimit(budget, clock, power, most)
    for step in range(1, 101):
        clock.time_share = seconds_per_step * step / budget
        limit.on_train_batch_end(SimpleNamespace(global_step=step, should_stop=False))
    return limit, clock


def test_a_run_that_has_time_for_a_quarter_of_its_steps_doubles_its_rate():
    from pimlip_zoo.training.schedule import learning_rate_factor

    _, clock = looked_ahead(0.5, 100.0)
    assert clock.raised == pytest.approx(2.0, rel=1e-12)
    assert clock.raised_at == 50
    clock.time_share = 0.0
    factor = learning_rate_factor("linear", warmup_steps=50, clock=clock, final=0.0)
    assert factor(49) == pytest.approx(50 / 51)
    assert factor(50) == pytest.approx(1.0)  # from there it rises in as many steps as it took to 1
    assert factor(101) == pytest.approx(2.0 * (1.0 - 51 / 1950))
    assert factor(2000) == 0.0


@pytest.mark.parametrize(
    "choices",
    [(0.0, 100.0, 1.0), (0.5, 100.0, 0.2)],
    ids=["without the power", "with time for all steps"],
)
def test_a_rate_is_not_raised(choices):
    _, clock = looked_ahead(*choices)
    assert clock.raised == 1.0


def test_a_rate_is_raised_to_the_highest_at_most():
    _, clock = looked_ahead(0.5, 1.5)
    assert clock.raised == 1.5


def test_a_resumed_run_keeps_what_its_rate_was_raised_to():
    from pimlip_zoo.training.callbacks import TimeLimit
    from pimlip_zoo.training.schedule import RunClock

    limit, clock = looked_ahead(0.5, 100.0)
    other = RunClock(2000, start=50)
    resumed = TimeLimit(500.0, other, 0.5, 100.0)
    resumed.load_state_dict(limit.state_dict())
    other.time_share = 0.9  # slower now
    for step in (101, 201):
        resumed.on_train_batch_end(SimpleNamespace(global_step=step, should_stop=False))
    assert (other.raised, other.raised_at) == (clock.raised, clock.raised_at)


@pytest.mark.parametrize(
    ("change", "raised"),
    [
        ({"seconds": 5000.0}, 1.0),  # enough for all steps
        ({"shorter_power": 0.0}, 1.0),
        ({"most": 1.25}, 1.25),
        ({"shorter_power": 1.0}, 4.0),
    ],
    ids=["more time", "no power", "a lower limit", "another power"],
)
def test_a_resumed_run_whose_time_or_limits_changed_finds_its_rate_anew(change, raised):
    from pimlip_zoo.training.callbacks import TimeLimit
    from pimlip_zoo.training.schedule import RunClock

    limit, clock = looked_ahead(0.5, 100.0)
    assert clock.raised == pytest.approx(2.0)
    limit._before = 100.0
    other = RunClock(2000, start=50)
    options = {"seconds": 500.0, "shorter_power": 0.5, "most": 100.0, **change}
    resumed = TimeLimit(clock=other, **options)
    resumed.load_state_dict(limit.state_dict())
    assert other.raised <= options["most"]
    for step in range(101, 151):
        other.time_share = step / options["seconds"]
        resumed.on_train_batch_end(SimpleNamespace(global_step=step, should_stop=False))
    assert other.raised == pytest.approx(raised)


def test_a_run_of_a_version_before_goes_on_without_a_raised_rate():
    from pimlip_zoo.training.callbacks import TimeLimit
    from pimlip_zoo.training.schedule import RunClock

    clock = RunClock(2000)
    TimeLimit(500.0, clock, 0.5).load_state_dict({"seconds": 10.0, "budget": 500.0})
    assert clock.raised == 1.0


def test_the_default_recipe_raises_the_rate_of_a_run_that_is_ended_by_its_time(tmp_path, caplog):
    caplog.set_level("INFO", logger="pimlip_zoo")
    run(
        tmp_path,
        "trainer.max_time=3s",
        "trainer.max_steps=1000000",
        "schedule.warmup_steps=5",
        "trainer.valid_every=100000",
    )
    assert "of 1,000,000 steps: the learning rate is raised" in caplog.text
    with (tmp_path / "metrics.csv").open() as file:
        *_, row = csv.DictReader(file)
    assert float(row["learning_rate"]) == 0.0  # linear, to zero


def test_a_resumed_run_has_the_time_that_is_left(tmp_path):
    from pimlip_zoo.training.callbacks import TimeLimit
    from pimlip_zoo.training.schedule import RunClock

    first = TimeLimit(100.0, RunClock(10))
    first._before = 70.0
    clock = RunClock(10)
    second = TimeLimit(100.0, clock)
    second.load_state_dict(first.state_dict())
    second.on_train_start(trainer := SimpleNamespace(world_size=1, should_stop=False), None)
    assert clock.time_share == pytest.approx(0.7, abs=0.01)
    assert clock.progress(0) == clock.time_share
    assert not trainer.should_stop


def test_the_time_left_is_that_until_whichever_end_comes_first():
    from pimlip_zoo.training.progress import TimeLeft, duration
    from pimlip_zoo.training.schedule import RunClock

    clock = RunClock(1000)
    left = TimeLeft(clock)
    left._marks = deque((time - 10.0, step) for time, step in left._marks)
    rate, seconds = left.seconds(100)
    assert rate == pytest.approx(10.0, rel=0.01)
    assert seconds == pytest.approx(90.0, rel=0.01)
    clock.budget, clock.time_share = 40.0, 0.25
    assert left.seconds(100)[1] == pytest.approx(30.0)
    clock.budget = None
    left._marks = deque([(left._marks[-1][0] - 1000.0, 0), (left._marks[-1][0] - 100.0, 90)])
    rate, _ = left.seconds(100)  # of the last minutes, not of all of the run
    assert rate == pytest.approx(0.1, rel=0.05)
    assert [duration(s) for s in (45, 725, 11_100)] == ["45 s", "12 min", "3 h 05 min"]


def test_the_last_step_is_validated_and_the_best_step_kept(tmp_path):
    outcome = run(tmp_path, "trainer.max_steps=7", "trainer.valid_every=4")
    with (tmp_path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert outcome.steps == 7
    assert [row["step"] for row in rows] == ["4", "7"]
    best = min(rows, key=lambda row: float(row["valid_energy_rmse"]) + float(row["valid_forces_rmse"]))
    content = torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)
    assert content["global_step"] == int(best["step"])


def test_losses_of_steps_reach_table_and_loggers(tmp_path, monkeypatch):
    """With a logger that writes a file in the place of tensorboard's."""
    from lightning.pytorch import loggers

    from pimlip_zoo.training import module

    monkeypatch.setattr(module, "LOGGED_EVERY", 2)
    monkeypatch.setattr("pimlip_zoo.experiment.trainer.check_loggers", lambda names: None)
    monkeypatch.setattr(loggers, "TensorBoardLogger", loggers.CSVLogger)
    run(tmp_path, "trainer.max_steps=5", "trainer.valid_every=5", "trainer.tensorboard=true")
    with (tmp_path / "metrics.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert float(row["loss"]) > 0
    with next(tmp_path.rglob("tensorboard/metrics.csv")).open() as file:
        logged = [r for r in csv.DictReader(file) if r.get("loss")]
    assert [r["step"] for r in logged] == ["1", "3"]
    assert all(float(r["loss"]) > 0 and float(r["loss_forces"]) > 0 for r in logged)


def test_training_leaves_the_default_precision_of_torch_alone(tmp_path):
    before = torch.get_default_dtype()
    run(tmp_path, "trainer.max_steps=2", "trainer.dtype=float64")
    assert torch.get_default_dtype() == before
    assert load_potential(tmp_path).model.dtype == torch.float64


@pytest.mark.parametrize("text", ["", "10", "m", "-3m", "1 h", "0s", "0.0h0m", "1h1h", "10m20m", "٣m"])
def test_a_time_without_a_unit_or_of_no_length_is_refused(text):
    from pimlip_zoo.errors import InputError

    with pytest.raises(InputError, match="10m"):
        experiment.parse_duration(text)


@pytest.mark.parametrize("text", ["9999999999999d", f"{'9' * 400}h"])
def test_a_time_beyond_all_calendars_is_refused(text):
    from pimlip_zoo.errors import InputError

    with pytest.raises(InputError, match="longer than"):
        experiment.parse_duration(text)
