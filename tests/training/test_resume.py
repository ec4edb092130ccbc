"""An interrupted run that is resumed ends where an uninterrupted one does, bit for bit."""

import csv
import os
import signal

import lightning.pytorch as pl
import pytest
import torch

from pimlip_zoo import experiment
from pimlip_zoo.config import load_config, parse_settings
from pimlip_zoo.errors import InputError
from pimlip_zoo.experiment import run as runs

SETTINGS = [
    "data.train=builtin:ethanol-gfn2/train@:35",
    "data.valid=builtin:ethanol-gfn2/valid@:5",
    "model.channels=4",
    "model.radial_hidden=[4]",
    "trainer.max_steps=14",
    "trainer.valid_every=5",
]


class SignalAt(pl.Callback):
    def __init__(self, step, number):
        self.step, self.number, self.sent = step, number, False

    def on_train_batch_start(self, trainer, *args):
        if trainer.global_step == self.step and not self.sent:  # a step may take several batches
            self.sent = True
            os.kill(os.getpid(), self.number)


def run(folder, *, resume=False, interrupt=None, monkeypatch=None, settings=SETTINGS):
    prepared = experiment.prepare(load_config(None, parse_settings(settings)))
    if interrupt is None:
        return experiment.train(prepared, folder, resume=resume)
    make = runs.make_trainer

    def with_signal(*arguments, **more):
        trainer = make(*arguments, **more)
        trainer.callbacks.append(SignalAt(*interrupt))
        return trainer

    with monkeypatch.context() as patch:
        patch.setattr(runs, "make_trainer", with_signal)
        return experiment.train(prepared, folder, resume=resume)


def weights(folder, name="last"):
    return torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)


def rows(folder):
    with (folder / "metrics.csv").open() as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    run(folder)
    return folder


PHASES = [
    *SETTINGS,
    "schedule.name=plateau",
    "schedule.plateau_patience=1",
    "schedule.plateau_factor=0.5",
    "schedule.warmup_steps=0",
    "optimizer.lr=1e-9",
    "loss.late.start=0.5",
    "loss.late.rate=0.1",
    "trainer.valid_every=2",
    "trainer.ema_decay=0",
]
"""Nothing improves, so that the rate falls at every other validation, and the late phase begins at step 7."""


@pytest.mark.parametrize("step", [4, 6, 10])
def test_plateaus_and_the_late_phase_go_on_where_they_were(tmp_path, monkeypatch, step):
    run(tmp_path / "whole", settings=PHASES)
    run(tmp_path / "parts", interrupt=(step, signal.SIGTERM), monkeypatch=monkeypatch, settings=PHASES)
    run(tmp_path / "parts", resume=True, settings=PHASES)
    assert rows(tmp_path / "parts") == rows(tmp_path / "whole")
    rates = [float(row["learning_rate"]) for row in rows(tmp_path / "whole")]
    assert rates[0] == pytest.approx(1e-9)
    assert rates[-1] < 0.1 * rates[0], "a plateau and the late phase have lowered it"
    best = [weights(tmp_path / name, "best")["global_step"] for name in ("whole", "parts")]
    assert best[0] == best[1]
    assert best[0] > 7, "the best weights are those of the late phase, although nothing improved"


@pytest.mark.parametrize("step", [0, 3, 4, 7, 13])
def test_weights_and_metrics_after_resuming_equal_those_of_an_uninterrupted_run(
    uninterrupted, tmp_path, monkeypatch, step
):
    outcome = run(tmp_path / "run", interrupt=(step, signal.SIGTERM), monkeypatch=monkeypatch)
    finished = step == 13
    assert outcome.signal == (None if finished else signal.SIGTERM)
    assert outcome.steps == step + 1
    if not finished:
        assert run(tmp_path / "run", resume=True).steps == 14
    whole, parts = weights(uninterrupted), weights(tmp_path / "run")
    for key in ("state_dict", "current_model_state"):
        assert whole[key].keys() == parts[key].keys()
        assert all(torch.equal(whole[key][name], parts[key][name]) for name in whole[key])
    best, best_of_parts = weights(uninterrupted, "best"), weights(tmp_path / "run", "best")
    assert best["global_step"] == best_of_parts["global_step"]
    assert rows(uninterrupted) == rows(tmp_path / "run")


def test_batches_by_a_budget_of_edges_resume_exactly_too(tmp_path, monkeypatch):
    settings = [*SETTINGS, "data.max_edges=300", "data.batch_size=100"]
    run(tmp_path / "whole", settings=settings)
    run(tmp_path / "parts", settings=settings, interrupt=(6, signal.SIGTERM), monkeypatch=monkeypatch)
    run(tmp_path / "parts", settings=settings, resume=True)
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(
        torch.equal(value, parts["current_model_state"][name])
        for name, value in whole["current_model_state"].items()
    )


def test_a_structure_beyond_the_budget_is_refused_with_the_setting(tmp_path):
    with pytest.raises(InputError, match="max_edges"):
        run(tmp_path / "run", settings=[*SETTINGS, "data.max_edges=10"])


def test_ctrl_c_is_answered_like_sigterm(tmp_path, monkeypatch):
    outcome = run(tmp_path / "run", interrupt=(2, signal.SIGINT), monkeypatch=monkeypatch)
    assert outcome.signal == signal.SIGINT
    assert weights(tmp_path / "run")["global_step"] == 3


def test_the_handlers_of_signals_are_put_back(tmp_path, monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    run(tmp_path / "run", interrupt=(2, signal.SIGTERM), monkeypatch=monkeypatch)
    assert signal.getsignal(signal.SIGTERM) == before


def test_what_a_training_switches_in_the_process_is_put_back(tmp_path, monkeypatch):
    import logging

    def found():
        level = logging.getLogger("lightning.pytorch").level
        return torch.get_num_threads(), torch.get_float32_matmul_precision(), level

    before, inside, make = found(), [], runs.make_trainer
    monkeypatch.setattr(
        runs, "make_trainer", lambda *arguments, **more: inside.append(found()) or make(*arguments, **more)
    )
    settings = [*SETTINGS, "trainer.max_steps=1", "trainer.threads=2", "trainer.products=tf32"]
    run(tmp_path / "run", settings=settings)
    assert inside == [(2, "high", logging.WARNING)]
    assert found() == before


def test_resuming_nothing_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"last\.ckpt.*nothing to resume"):
        run(tmp_path / "run", resume=True)


def test_the_averaged_weights_differ_from_the_current_ones_and_are_the_ones_loaded(uninterrupted):
    from pimlip_zoo.training.checkpoint import load_potential

    content = weights(uninterrupted)
    potential = load_potential(uninterrupted, which="last")
    name = "model.species_embedding"
    assert not torch.equal(
        content["state_dict"]["potential." + name], content["current_model_state"]["potential." + name]
    )
    assert torch.equal(potential.state_dict()[name], content["state_dict"]["potential." + name])
