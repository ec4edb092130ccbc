"""Two processes train as one does."""

import os
import subprocess
import sys
import textwrap

import pytest
import torch

SCRIPT = textwrap.dedent(
    """
    import logging, sys, warnings
    warnings.filterwarnings("ignore")
    from pathlib import Path
    from pimlip_zoo.config import load_config, parse_settings
    from pimlip_zoo.experiment import prepare, train

    settings = [
        "data.train=builtin:ethanol-gfn2/train@:13", "data.valid=builtin:ethanol-gfn2/valid@:4",
        "model.channels=4", "model.radial_hidden=[4]", "trainer.max_steps=8", "trainer.valid_every=8",
        "data.batch_size=4", "trainer.dtype=float64", "trainer.device=cpu", f"trainer.devices={sys.argv[1]}",
        "model.cutoff=4.0",
    ]
    train(prepare(load_config(None, parse_settings(settings))), Path(sys.argv[2]))
    """
)


def weights_of(folder):
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["current_model_state"]


@pytest.mark.slow
def test_two_gloo_ranks_with_uneven_last_batches_end_with_the_weights_of_one(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for ranks in ("1", "2"):
        subprocess.run(
            [sys.executable, tmp_path / "script.py", ranks, tmp_path / ranks],
            check=True,
            timeout=300,
            env=environment,
            capture_output=True,
        )
    one, two = weights_of(tmp_path / "1"), weights_of(tmp_path / "2")
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-9, atol=1e-11)
