"""One recipe from a foundation model and a few labels to a small student, as short as it can be."""

import shutil
import signal

import numpy as np
import pytest
import torch

from pimlip_zoo.cli.import_ import write_run
from pimlip_zoo.config import load_config
from pimlip_zoo.datasets.lmdb import FrameStore
from pimlip_zoo.errors import InputError
from pimlip_zoo.experiment import prepare, steps_done
from pimlip_zoo.experiment.run import Outcome
from pimlip_zoo.experiment.stages import Run, prepare_run, train_run
from pimlip_zoo.training import recipes
from pimlip_zoo.training.checkpoint import load_potential
from pimlip_zoo.weak_labels.ensemble import predict_labels

DATA = {
    "data.train": "builtin:ethanol-gfn2@0:8",
    "data.valid": "builtin:ethanol-gfn2/valid@0:4",
    "data.batch_size": 4,
    "model.channels": 4,
    "model.l_max": 1,
    "trainer.max_steps": 4,
    "trainer.valid_every": 2,
    "trainer.device": "cpu",
}


@pytest.fixture(scope="module")
def foundation(tmp_path_factory):
    torch.manual_seed(0)
    options = {"model.name": "mace", "model.correlation": 2}
    potential = prepare(load_config(None, list((DATA | options).items()))).potential
    folder = tmp_path_factory.mktemp("foundation") / "model"
    write_run(potential, folder, {"imported": "foundation.model", "head": None})
    return folder


def recipe(tmp_path, calculator, **options):
    values = {
        **DATA,
        "model.name": "nequip",
        "weak.preset": "foundation-distill",
        "weak.labels.calculator": calculator,
        "weak.labels.steps": 3,
        "weak.labels.pool.structures": 6,
        "weak.labels.pool.method": "displaced",
        "weak.labels.cache": str(tmp_path / "cache"),
        **options,
    }
    return load_config(None, list(values.items()))


@pytest.mark.parametrize("lora", [None, 2])
def test_the_fine_tuned_model_labels_the_pool_that_the_student_learns(tmp_path, foundation, lora):
    config = recipe(tmp_path, f"run:{foundation}", **({} if lora is None else {"weak.labels.lora": lora}))
    experiment = prepare_run(config)
    assert train_run(experiment, tmp_path / "run").steps == 4
    assert type(load_potential(tmp_path / "run").model).__name__ == "NequIP"
    teacher = load_potential(tmp_path / "run" / "teacher")
    assert type(teacher.model).__name__ == "MACE"
    assert steps_done(tmp_path / "run" / "teacher" / "checkpoints" / "last.ckpt") == 3
    moved = [
        not torch.equal(value, before)
        for value, before in zip(teacher.parameters(), load_potential(foundation).parameters(), strict=True)
    ]
    assert any(moved)
    (pool,) = (tmp_path / "cache").glob("*.lmdb")
    frames = list(FrameStore(pool))
    assert len(frames) == 6
    for frame, predicted in zip(frames, predict_labels(teacher, frames), strict=True):
        assert frame.energy == pytest.approx(predicted.energy, abs=1e-3)
        np.testing.assert_allclose(frame.forces, predicted.forces, atol=1e-4)
    # Resumed, nothing is done again.
    again = train_run(prepare_run(config, checkpoint=None), tmp_path / "run", resume=True)
    assert again.steps == 4


def test_a_calculator_that_is_no_run_cannot_be_fine_tuned(tmp_path):
    with pytest.raises(InputError, match="emt is no potential that could be fine-tuned"):
        prepare_run(recipe(tmp_path, "emt"))


def test_a_fine_tuning_that_has_begun_keeps_the_version_of_its_recipe(tmp_path, foundation, monkeypatch):
    """A newer version has another optimiser, which would go on with the state of the first one."""
    config = recipe(tmp_path, f"run:{foundation}", **{"data.train": "builtin:ethanol-gfn2@0:30"})
    with monkeypatch.context() as patch:
        patch.delitem(recipes._recipes, ("finetune", 2))
        train_run(prepare_run(config), tmp_path / "run")
    teacher = tmp_path / "run" / "teacher"
    of_teacher = load_config(teacher / "config.yaml", complete=True)
    assert (of_teacher.recipe.version, of_teacher.optimizer.name) == (1, "adamw")
    shutil.rmtree(tmp_path / "run" / "checkpoints")  # as it is while the teacher is trained
    made, stopped = [], Outcome(tmp_path / "run", 0, 0.0, signal.SIGTERM)
    monkeypatch.setattr(Run, "stage", lambda _, name, experiment: made.append(experiment) or stopped)
    assert train_run(prepare_run(config), tmp_path / "run", resume=True).signal == signal.SIGTERM
    assert (made[0].config.recipe.version, made[0].config.optimizer.name) == (1, "adamw")
    shutil.rmtree(teacher / "checkpoints")  # one that has not begun has the newest
    assert train_run(prepare_run(config), tmp_path / "run").signal == signal.SIGTERM
    assert (made[1].config.recipe.version, made[1].config.optimizer.name) == (2, "muon")
