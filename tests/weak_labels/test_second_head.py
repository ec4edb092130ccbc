"""The baseline that lives outside the package: a correction for the cheap level, trained beside the potential."""

import importlib
import sys
from pathlib import Path

import pytest
import torch

from pimlip_zoo.config import load_config
from pimlip_zoo.experiment.stages import Run, prepare_run, train_run
from pimlip_zoo.training.checkpoint import load_potential
from pimlip_zoo.weak_labels.recipe import RECIPES

BASELINES = Path(__file__).parents[2] / "benchmarks" / "weak" / "baselines" / "src"


@pytest.fixture
def _registered(monkeypatch):
    RECIPES.all()
    monkeypatch.setattr(RECIPES, "_items", dict(RECIPES._items))
    monkeypatch.syspath_prepend(str(BASELINES))
    sys.modules.pop("pimlip_zoo_baselines.second_head", None)
    importlib.import_module("pimlip_zoo_baselines.second_head")


@pytest.mark.usefixtures("_registered")
def test_a_second_head_is_trained_beside_the_potential_and_is_not_part_of_it(tmp_path):
    settings = {
        "data.train": "builtin:ethanol-gfn2@0:6",
        "data.valid": "builtin:ethanol-gfn2/valid@0:2",
        "model.channels": 4,
        "model.l_max": 1,
        "trainer.max_steps": 2,
        "trainer.ema_decay": 0.0,
        "trainer.device": "cpu",
        "weak.labels.method": "second_head",
        "weak.labels.calculator": "emt",
        "weak.labels.batch_size": 2,
        "weak.labels.pool.structures": 4,
        "weak.labels.pool.method": "displaced",
        "weak.labels.cache": str(tmp_path / "cache"),
    }
    experiment = prepare_run(load_config(None, list(settings.items())))
    labels = experiment.config.weak.labels
    fresh = labels.recipe().term(Run(experiment, labels, tmp_path)).correction.state_dict()
    assert train_run(experiment, tmp_path / "run").steps == 2
    content = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    trained = {name.split("correction.")[1]: v for name, v in content.items() if "correction.model" in name}
    assert sum(not torch.equal(value, fresh[name]) for name, value in trained.items()) > 0.5 * len(trained)
    left = load_potential(tmp_path / "run").state_dict()
    assert left.keys() == experiment.potential.state_dict().keys()
    assert not any("correction" in name for name in left)
