"""Gradient accumulation and products of low precision."""

import signal

import pytest
import torch
from test_resume import rows, run, weights

from pimlip_zoo import experiment
from pimlip_zoo.config import load_config, parse_settings
from pimlip_zoo.errors import InputError

SETTINGS = [
    "data.train=builtin:ethanol-gfn2/train@:24",
    "data.valid=builtin:ethanol-gfn2/valid@:5",
    "model.channels=4",
    "model.radial_hidden=[4]",
    "trainer.max_steps=8",
    "trainer.valid_every=3",
]


def test_accumulated_batches_take_the_steps_of_one_large_batch(tmp_path):
    double = [*SETTINGS, "trainer.dtype=float64"]
    run(tmp_path / "large", settings=[*double, "data.batch_size=8"])
    run(tmp_path / "parts", settings=[*double, "data.batch_size=2", "trainer.accumulate=4"])
    large, parts = weights(tmp_path / "large"), weights(tmp_path / "parts")
    assert large["global_step"] == parts["global_step"] == 8
    for name, value in large["state_dict"].items():
        torch.testing.assert_close(parts["state_dict"][name], value, rtol=1e-9, atol=1e-9, msg=name)
    assert [row["step"] for row in rows(tmp_path / "parts")] == ["3", "6", "8"]


def test_a_run_that_accumulates_resumes_exactly(tmp_path, monkeypatch):
    options = [*SETTINGS, "data.batch_size=2", "trainer.accumulate=3"]
    run(tmp_path / "whole", settings=options)
    outcome = run(
        tmp_path / "parts", settings=options, interrupt=(4, signal.SIGTERM), monkeypatch=monkeypatch
    )
    assert outcome.steps == 5  # the step that was begun is finished
    run(tmp_path / "parts", settings=options, resume=True)
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(parts["state_dict"][name], value) for name, value in whole["state_dict"].items())


@pytest.mark.parametrize("model", ["nequip", "mace", "allegro"])
def test_bf16_products_train_almost_the_same_and_are_validated_in_float32(tmp_path, model):
    small = ["trainer.max_steps=2", f"model.name={model}", "model.l_max=1"]
    options = [*(s for s in SETTINGS if not s.startswith(("model", "trainer.max"))), *small]
    run(tmp_path / "exact", settings=options)
    run(tmp_path / "bf16", settings=[*options, "trainer.products=bf16"])
    exact, bf16 = weights(tmp_path / "exact"), weights(tmp_path / "bf16")
    assert all(value.dtype == exact["state_dict"][name].dtype for name, value in bf16["state_dict"].items())
    one, two = (float(rows(tmp_path / name)[-1]["valid_forces_mae"]) for name in ("exact", "bf16"))
    assert two == pytest.approx(one, rel=0.05)
    # Two steps move weights by little: compared is what moved, not an error that may round to the same number.
    assert any(
        not torch.equal(bf16["state_dict"][name], value) for name, value in exact["state_dict"].items()
    )
    potential = experiment.prepare(load_config(None, parse_settings(options))).potential
    assert potential.model.dtype == torch.float32


def test_bf16_with_float64_is_refused():
    with pytest.raises(InputError, match="bf16"):
        load_config(None, parse_settings(["trainer.products=bf16", "trainer.dtype=float64"]))
