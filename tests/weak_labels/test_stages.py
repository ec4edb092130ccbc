"""Whole trainings with weak labels, as short as they can be."""

import copy
import json
import pickle
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import pimlip_zoo
from pimlip_zoo.config import load_config, save_config
from pimlip_zoo.datasets.builtin import load_builtin
from pimlip_zoo.datasets.frame import frame_to_atoms
from pimlip_zoo.datasets.lmdb import FrameStore
from pimlip_zoo.errors import InputError
from pimlip_zoo.evaluation import evaluate
from pimlip_zoo.experiment import check_settings, prepare
from pimlip_zoo.experiment.curve import Point, collect, run_points, subset, summarise
from pimlip_zoo.experiment.ended import is_over
from pimlip_zoo.experiment.run import steps_done, train
from pimlip_zoo.experiment.stages import Run, prepare_run, train_run
from pimlip_zoo.report.curve import curve_plot
from pimlip_zoo.training.checkpoint import baseline_of, load_potential
from pimlip_zoo.weak_labels.calculators import find_cheap_calculator
from pimlip_zoo.weak_labels.config import WeakLabelsConfig
from pimlip_zoo.weak_labels.ensemble import ensemble_labels, predict_labels
from pimlip_zoo.weak_labels.pool import cached_labels, label_frames

DATA = "builtin:ethanol-gfn2@0:8"
LJ = "ase.calculators.lj:LennardJones"


def settings(tmp_path, method=None, **options):
    values = {
        "data.train": DATA,
        "data.valid": "builtin:ethanol-gfn2/valid@0:4",
        "data.batch_size": 4,
        "model.name": "nequip",
        "model.channels": 4,
        "model.l_max": 1,
        "trainer.max_steps": 4,
        "trainer.valid_every": 2,
        "trainer.device": "cpu",
        **options,
    }
    if method is not None:
        values |= {
            "weak.labels.method": method,
            "weak.labels.calculator": "emt",
            "weak.labels.cache": str(tmp_path / "cache"),
        }
        if method != "delta":  # which samples nothing
            values |= {"weak.labels.pool.structures": 6, "weak.labels.pool.method": "displaced"}
        if method in ("pretrain", "distill", "curriculum"):
            values["weak.labels.steps"] = 3
        if method == "curriculum":
            values["weak.labels.pretrain_steps"] = 3
        if method == "shared_head":
            values["weak.labels.batch_size"] = 2
        if method == "levels":
            del values["weak.labels.calculator"]
            other = {"data": "builtin:ethanol-gfn2@20:28", "name": "file", "weight": 0.5}
            values["weak.labels.levels"] = [{"calculator": "emt", "batch_size": 2}, other]
    return list((values | options).items())


@pytest.fixture(autouse=True)
def _cache(monkeypatch, tmp_path):
    monkeypatch.setenv("PIMLIP_ZOO_CACHE", str(tmp_path / "cache"))


def run(tmp_path, method=None, **options):
    experiment = prepare_run(load_config(None, settings(tmp_path, method, **options)))
    outcome = train_run(experiment, tmp_path / "run")
    return experiment, outcome


def test_pre_training_leaves_its_weights_where_fine_tuning_starts(tmp_path):
    experiment, outcome = run(tmp_path, "pretrain", **{"optimizer.lr": 1e-9, "trainer.ema_decay": 0.0})
    assert outcome.steps == 4
    first, last = load_potential(tmp_path / "run" / "pretrain"), load_potential(tmp_path / "run")
    for a, b in zip(first.parameters(), last.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    assert experiment.labels == ("energy", "forces")


def interrupted_in(stage, step, monkeypatch):
    """From now on a training in a folder of this name is stopped, once, after so many steps."""
    from pimlip_zoo.experiment import run as runs
    from pimlip_zoo.training.callbacks import GracefulStop

    make, told = runs.make_trainer, []

    def interrupting(config, folder, clock, seconds, **more):
        trainer = make(config, folder, clock, seconds, **more)
        if folder.name == stage and not told:
            (stop,) = [c for c in trainer.callbacks if isinstance(c, GracefulStop)]
            began = stop.on_train_batch_end

            def end(trainer, *arguments):
                if trainer.global_step == step:
                    told.append(step)
                    stop.signal = signal.SIGTERM
                began(trainer, *arguments)

            stop.on_train_batch_end = end
        return trainer

    monkeypatch.setattr(runs, "make_trainer", interrupting)


@pytest.mark.parametrize(
    ("method", "stage", "options"),
    [
        ("pretrain", "pretrain", {"weak.labels.reuse": False}),
        ("distill", "teacher", {"weak.labels.reuse": False}),
        ("distill", "student-1", {"weak.labels.iterations": 2}),
        ("curriculum", "pretrain", {"weak.labels.reuse": False}),
        ("curriculum", "teacher", {"weak.labels.reuse": False}),
        ("curriculum", "run", {}),
        ("delta", "run", {}),
        ("shared_head", "run", {}),
        ("levels", "run", {}),
    ],
)
def test_a_run_stopped_in_any_stage_goes_on_from_its_folder_alone(
    tmp_path, monkeypatch, method, stage, options
):
    given = settings(tmp_path, method, **options)
    train_run(prepare_run(load_config(None, given)), tmp_path / "whole")
    interrupted_in(stage, 1, monkeypatch)
    folder = tmp_path / "run"
    outcome = train_run(prepare_run(load_config(None, given)), folder)
    assert (outcome.signal, outcome.steps) == (signal.SIGTERM, 1)
    config = load_config(folder / "config.yaml", complete=True)
    assert config == load_config(tmp_path / "whole" / "config.yaml", complete=True)
    check_settings(folder, config)
    last = folder / "checkpoints" / "last.ckpt"
    experiment = prepare_run(config, checkpoint=last if last.exists() else None, resumes=folder)
    assert train_run(experiment, folder, resume=True).steps == 4
    parts, whole = (
        torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["current_model_state"]
        for run in (folder, tmp_path / "whole")
    )
    assert parts.keys() == whole.keys()
    for name, value in parts.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, whole[name]), name


def test_the_configuration_is_written_before_the_first_stage_and_once(tmp_path, monkeypatch):
    config = load_config(None, settings(tmp_path, "pretrain"))
    seen = []

    def look(run, name, experiment, **options):
        seen.append((tmp_path / "run" / "config.yaml").stat().st_mtime_ns)
        return original(run, name, experiment, **options)

    original = Run.stage
    monkeypatch.setattr(Run, "stage", look)
    experiment = prepare_run(config)
    train_run(experiment, tmp_path / "run")
    assert seen == [(tmp_path / "run" / "config.yaml").stat().st_mtime_ns]
    assert load_config(tmp_path / "run" / "config.yaml", complete=True) == experiment.config


def test_a_finished_stage_is_not_repeated(tmp_path):
    config = load_config(None, settings(tmp_path, "pretrain"))
    train_run(prepare_run(config), tmp_path / "run")
    stage = tmp_path / "run" / "pretrain" / "checkpoints" / "last.ckpt"
    before = stage.stat().st_mtime_ns
    weights = load_potential(tmp_path / "run").state_dict()
    for name in ("best", "last"):
        (tmp_path / "run" / "checkpoints" / f"{name}.ckpt").unlink()
    train_run(prepare_run(config), tmp_path / "run", resume=True)
    assert stage.stat().st_mtime_ns == before
    for name, value in load_potential(tmp_path / "run").state_dict().items():
        torch.testing.assert_close(value, weights[name], rtol=0, atol=0)


@pytest.mark.parametrize(
    "ends",
    [{"trainer.patience": 1, "optimizer.lr": 0.3}, {"trainer.max_time": "0.2s"}],
    ids=["patience", "time"],
)
def test_a_stage_that_ended_early_is_not_trained_on(tmp_path, ends):
    """What is left of a run would otherwise begin with other weights each time that it is resumed."""
    early = {"weak.labels.steps": 5_000, "weak.labels.reuse": False, "trainer.valid_every": 1, **ends}
    config = load_config(None, settings(tmp_path, "pretrain", **early))
    train_run(prepare_run(config), tmp_path / "run")
    stage = tmp_path / "run" / "pretrain" / "checkpoints" / "last.ckpt"
    before, steps = stage.stat().st_mtime_ns, steps_done(stage)
    assert 0 < steps < 5_000
    for name in ("best", "last"):
        (tmp_path / "run" / "checkpoints" / f"{name}.ckpt").unlink()
    train_run(prepare_run(config), tmp_path / "run", resume=True)
    assert (stage.stat().st_mtime_ns, steps_done(stage)) == (before, steps)


def test_a_teacher_is_what_it_was_when_its_student_began_and_that_is_said(tmp_path, caplog):
    """More patience, given when the student is resumed, is the student's."""
    given = {
        "weak.labels.steps": 5_000,
        "weak.labels.reuse": False,
        "trainer.valid_every": 1,
        "optimizer.lr": 0.3,
    }

    def trained(**options):
        config = load_config(None, settings(tmp_path, "distill", **given, **options))
        train_run(prepare_run(config), tmp_path / "run", resume=(tmp_path / "run").exists())

    trained(**{"trainer.patience": 1})
    teacher = tmp_path / "run" / "teacher" / "checkpoints" / "last.ckpt"
    before = (teacher.stat().st_mtime_ns, steps_done(teacher))
    assert before[1] < 5_000
    with caplog.at_level("INFO", logger="pimlip_zoo"):
        trained(**{"trainer.patience": 3, "trainer.max_steps": 6})
    assert (teacher.stat().st_mtime_ns, steps_done(teacher)) == before
    said = [r.getMessage() for r in caplog.records if r.getMessage().startswith("teacher: left as it is")]
    assert said == [f"teacher: left as it is, at step {before[1]} of 5000: {tmp_path / 'run'} rests on it"]


@pytest.mark.parametrize("state", [{"wait_count": "x"}, {"wait_count": None}, {}, None])
def test_what_a_checkpoint_says_of_its_patience_may_be_anything(state):
    trainer = load_config(None, [("data.train", DATA), ("trainer.patience", 2)]).trainer
    content = {"global_step": 3, "callbacks": {"EarlyStopping{}": state, 7: {}}}
    assert not is_over(content, trainer)
    assert is_over({"callbacks": {"EarlyStopping{}": {"wait_count": 2}}}, trainer)


def test_a_stage_that_is_given_more_time_goes_on(tmp_path):
    def trained(**options):
        some = {"weak.labels.steps": 5_000, "weak.labels.reuse": False, **options}
        config = load_config(None, settings(tmp_path, "pretrain", **some))
        train_run(prepare_run(config), tmp_path / "run", resume=(tmp_path / "run").exists())
        return steps_done(tmp_path / "run" / "pretrain" / "checkpoints" / "last.ckpt")

    first = trained(**{"trainer.max_time": "0.2s"})
    for name in ("best", "last"):
        (tmp_path / "run" / "checkpoints" / f"{name}.ckpt").unlink()
    assert trained(**{"trainer.max_time": "1s"}) > first


def test_resuming_nothing_is_an_error(tmp_path):
    experiment = prepare_run(load_config(None, settings(tmp_path, "pretrain")))
    with pytest.raises(InputError, match="nothing to resume"):
        train_run(experiment, tmp_path / "run", resume=True)


def test_pre_training_brings_cheap_energies_to_the_level_of_the_labels(tmp_path):
    experiment = prepare_run(load_config(None, settings(tmp_path, "pretrain")))
    run_of = Run(experiment, experiment.config.weak.labels, tmp_path)
    raw, shifted = run_of.pool(shift=False), run_of.pool(shift=True)
    cheap = label_frames(experiment.frames, find_cheap_calculator("emt"))
    offset = np.mean([a.energy - b.energy for a, b in zip(experiment.frames, cheap, strict=True)])
    for a, b in zip(raw, shifted, strict=True):
        assert b.energy - a.energy == pytest.approx(offset, abs=1e-6)  # one composition


def test_energies_alone_take_the_scale_of_forces_from_the_pool(tmp_path):
    options = {"data.labels": ["energy"], "optimizer.lr": 1e-9}
    experiment, _ = run(tmp_path, "pretrain", **options)
    pool_rms = experiment.potential.scale[0].item()
    assert pool_rms != 1.0
    assert load_potential(tmp_path / "run").scale[0].item() == pytest.approx(pool_rms)
    assert all(frame.forces is None for frame in (*experiment.frames, *experiment.valid_frames))


@pytest.mark.parametrize("name", ["nequip", "allegro", "mace"])
@pytest.mark.parametrize("head", ["conservative", "direct"])
def test_two_levels_share_their_features_and_differ_in_their_readouts_alone(tmp_path, name, head):
    model = {"nequip": {"channels": 4, "l_max": 1}, "mace": {"channels": 4, "l_max": 1}, "allegro": {}}[name]
    options = {"model.name": name, "model.force_head": head}
    given = [item for item in settings(tmp_path, "shared_head", **options) if item[0][:6] != "model."]
    chosen = [*options.items(), *((f"model.{key}", value) for key, value in model.items())]
    experiment = prepare_run(load_config(None, [*given, *chosen]))
    potential = experiment.potential
    labels = experiment.config.weak.labels
    term = labels.recipe().term(Run(experiment, labels, tmp_path))
    assert all("readout" in name for name in term.names)
    batch = experiment.train[0]
    before = potential(batch.graph)
    assert torch.equal(term.predict(potential, batch.graph).energy, before.energy)  # they start as a copy
    with torch.no_grad():
        for parameter in term.readouts:
            parameter.mul_(1.5)
    energy, forces = term.predict(potential, batch.graph)[:2]
    assert not torch.allclose(energy, before.energy)
    assert torch.equal(potential(batch.graph).energy, before.energy)
    (energy.sum() + forces.square().sum()).backward()
    features = [p for n, p in potential.named_parameters() if n.startswith("model.") and n not in term.names]
    assert sum(p.grad is not None and bool(p.grad.any()) for p in features) > 0.5 * len(features)
    assert all(p.grad is None for n, p in potential.named_parameters() if n in term.names)
    assert any(bool(p.grad.any()) for p in term.readouts)


def test_a_shared_head_is_trained_resumed_and_not_part_of_the_potential(tmp_path):
    run(tmp_path, "shared_head")
    weights = load_potential(tmp_path / "run").state_dict()
    assert not any("terms" in name for name in weights)
    content = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    heads = {name: value for name, value in content.items() if ".readouts." in name and "terms" in name}
    assert heads
    own = [value for name, value in content.items() if name.startswith("potential.model.readout")]
    assert not all(torch.equal(a, b) for a, b in zip(heads.values(), own, strict=True))


@pytest.mark.parametrize(
    ("labels", "given", "factor"),
    [(["energy"], None, 0.1), (["energy", "forces"], None, 1.0), (["energy", "forces"], 0.3, 0.3)],
)
def test_the_run_after_pre_training_is_slower_where_only_energies_are_labelled(
    tmp_path, labels, given, factor
):
    from pimlip_zoo.experiment.run import training_module

    options = {"data.labels": labels, "optimizer.lr": 0.02, "schedule.warmup_steps": 0}
    if given is not None:
        options["weak.labels.rate_after"] = given
    experiment = prepare_run(load_config(None, settings(tmp_path, "pretrain", **options)))
    (group,) = training_module(experiment).configure_optimizers()["optimizer"].param_groups
    assert group["initial_lr"] == pytest.approx(0.02 * factor, rel=1e-12)


def test_an_architecture_that_names_no_readouts_is_refused_a_shared_head(tmp_path, monkeypatch):
    from pimlip_zoo.models.nequip import NequIP

    monkeypatch.setattr(NequIP, "readout_modules", ())
    with pytest.raises(InputError, match="which of its modules are readouts"):
        run(tmp_path, "shared_head")


def test_a_difference_model_says_how_certain_it_is_and_can_be_sent_to_another_process(tmp_path):
    run(tmp_path, "delta")
    atoms = frame_to_atoms(load_builtin("ethanol-gfn2/valid")[0])
    plain = pimlip_zoo.calculator(tmp_path / "run")
    atoms.calc = pimlip_zoo.calculator(tmp_path / "run", uncertainty=True)
    energy, forces = atoms.get_potential_energy(), atoms.get_forces()
    uncertain = atoms.calc.results["forces_uncertainty"]
    assert uncertain.shape == (len(atoms),)
    assert (uncertain > 0).all()
    assert atoms.calc.get_property("energy_uncertainty", atoms) > 0
    for calculator in (plain, pickle.loads(pickle.dumps(atoms.calc)), copy.deepcopy(atoms.calc)):
        again = atoms.copy()
        again.calc = calculator
        assert again.get_potential_energy() == energy
        np.testing.assert_array_equal(again.get_forces(), forces)


def test_a_difference_is_learnt_evaluated_and_used_with_its_baseline(tmp_path):
    experiment, _ = run(tmp_path, "delta")
    folder = tmp_path / "run"
    assert baseline_of(folder) == "emt"
    frames = load_builtin("ethanol-gfn2")[:8]
    cheap = label_frames(frames, find_cheap_calculator("emt"))
    assert experiment.frames[0].energy == pytest.approx(frames[0].energy - cheap[0].energy, abs=1e-9)
    with pytest.raises(InputError, match="correction to emt"):
        load_potential(folder)
    potential = load_potential(folder, difference=True)
    import pimlip_zoo

    atoms = frame_to_atoms(frames[0])
    atoms.calc = pimlip_zoo.calculator(folder)
    (correction,) = predict_labels(potential, frames[:1])
    assert atoms.get_potential_energy() == pytest.approx(cheap[0].energy + correction.energy, abs=1e-6)
    np.testing.assert_allclose(atoms.get_forces(), cheap[0].forces + correction.forces, atol=1e-5)
    errors = evaluate(potential, DATA, baseline="emt").summary
    expected = [
        abs(frame.energy - low.energy - predicted.energy)
        for frame, low, predicted in zip(frames, cheap, predict_labels(potential, frames), strict=True)
    ]
    assert errors["energy"]["mae"] == pytest.approx(np.mean(expected), abs=1e-6)


def test_a_difference_to_a_trained_potential_needs_that_very_potential(tmp_path):
    import pimlip_zoo

    run(tmp_path / "base")
    base, folder = tmp_path / "base" / "run", tmp_path / "run"
    run(tmp_path, "delta", **{"weak.labels.calculator": f"run:{base}"})
    frames = load_builtin("ethanol-gfn2")[:4]
    atoms = frame_to_atoms(frames[0])
    atoms.calc = pimlip_zoo.calculator(folder)
    parts = [predict_labels(load_potential(part, difference=True), frames[:1])[0] for part in (base, folder)]
    assert atoms.get_potential_energy() == pytest.approx(sum(part.energy for part in parts), abs=1e-6)
    np.testing.assert_allclose(atoms.get_forces(), sum(part.forces for part in parts), atol=1e-5)
    errors = evaluate(load_potential(folder, difference=True), DATA, baseline=baseline_of(folder)).summary
    assert errors["energy"]["mae"] > 0
    other = tmp_path / "other"
    run(other, seed=1)
    shutil.rmtree(base)
    (other / "run").rename(base)
    beside_another = r"base/run.*is not the run that the model was trained beside"
    with pytest.raises(InputError, match=beside_another):
        pimlip_zoo.calculator(folder)
    given = settings(tmp_path, "delta", **{"weak.labels.calculator": f"run:{base}", "trainer.max_steps": 6})
    with pytest.raises(InputError, match=beside_another):
        prepare_run(load_config(None, given), resumes=folder)


def test_a_student_learns_from_the_difference_model_and_stands_alone(tmp_path):
    run(tmp_path, "distill")
    folder = tmp_path / "run"
    assert baseline_of(folder / "teacher") == "emt"
    assert baseline_of(folder) is None
    load_potential(folder)


def test_a_student_of_the_curriculum_begins_with_the_pre_trained_weights_and_learns_the_teachers_labels(
    tmp_path, monkeypatch
):
    from pimlip_zoo.weak_labels import distill

    taught = []
    original = distill.teach
    monkeypatch.setattr(distill, "teach", lambda *a: taught.append(original(*a)) or taught[-1])
    options = {"optimizer.lr": 1e-9, "weak.labels.learning_rate": 1e-2, "trainer.ema_decay": 0.0}
    _, outcome = run(tmp_path, "curriculum", **options)
    assert outcome.steps == 4
    folder = tmp_path / "run"
    assert baseline_of(folder / "teacher") == "emt"
    assert baseline_of(folder / "pretrain") is None
    first, last = load_potential(folder / "pretrain"), load_potential(folder)
    for a, b in zip(first.parameters(), last.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    assert [len(frames) for frames in taught] == [6]
    recipe = load_config(folder / "config.yaml", complete=True).weak.labels.recipe()
    assert recipe.steps_before() == 6


def test_reference_labels_are_repeated_to_have_their_share_of_what_a_student_sees(tmp_path):
    for share, repeats in ((0.1, 1), (0.5, 1), (0.8, 3)):
        options = {"weak.labels.label_share": share, "weak.labels.steps": 1}
        given = settings(tmp_path, "distill", **options)
        experiment = prepare_run(load_config(None, given))
        labels = experiment.config.weak.labels
        of_run = Run(experiment, labels, tmp_path)
        student = labels.recipe()._student(of_run, of_run.pool(shift=False))
        assert len(student.train) == 6 + 8 * repeats


def test_pre_training_that_was_done_before_is_taken_from_the_cache_and_is_what_it_would_be(tmp_path, caplog):
    given = settings(tmp_path, "pretrain")

    def weights(folder, **changed):
        changed = {key.replace("__", "."): value for key, value in changed.items()}
        caplog.clear()
        values = list((dict(given) | changed).items())
        with caplog.at_level("INFO", logger="pimlip_zoo"):
            train_run(prepare_run(load_config(None, values)), tmp_path / folder)
        said = [record.getMessage() for record in caplog.records]
        return load_potential(tmp_path / folder / "pretrain"), any("taken from" in line for line in said)

    def same(a, b):
        return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))

    first, taken = weights("first")
    assert not taken
    second, taken = weights("second", trainer__max_steps=6)  # the run itself may be another one
    assert taken
    assert same(first, second)
    anew, taken = weights("anew", weak__labels__reuse=False)
    assert not taken
    assert same(first, anew)
    curriculum, taken = weights(
        "curriculum", weak__labels__method="curriculum", weak__labels__pretrain_steps=3
    )
    assert taken
    assert same(first, curriculum)


@pytest.mark.parametrize("name", ["last", "best"])
def test_a_stage_that_is_damaged_in_the_cache_is_trained_again_and_kept(tmp_path, caplog, name):
    given = load_config(None, settings(tmp_path, "pretrain"))
    train_run(prepare_run(given), tmp_path / "first")
    (kept,) = (tmp_path / "cache" / "stages").glob(f"*/checkpoints/{name}.ckpt")
    content = kept.read_bytes()
    kept.write_bytes(content[: len(content) // 2])
    assert train_run(prepare_run(given), tmp_path / "second").steps == 4
    said = [record.getMessage() for record in caplog.records]
    assert sum(f"{kept}: " in line and "the stage is trained again" in line for line in said) == 1
    first, second = (load_potential(tmp_path / folder / "pretrain") for folder in ("first", "second"))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert len(kept.read_bytes()) == len(content)


def test_labels_that_are_damaged_in_the_cache_say_what_helps(tmp_path):
    frames, calculator = load_builtin("ethanol-gfn2")[:2], find_cheap_calculator("emt")
    cached_labels(frames, calculator, tmp_path / "cache")
    (kept,) = (tmp_path / "cache").glob("*.lmdb")
    kept.write_bytes(kept.read_bytes()[:5000])
    with pytest.raises(
        InputError, match=rf"{kept.name}: is truncated.*\(remove it, and its labels are made anew\)"
    ):
        cached_labels(frames, calculator, tmp_path / "cache")


def test_a_teacher_that_was_trained_before_is_taken_from_the_cache(tmp_path, caplog):
    folders = [tmp_path / name for name in ("first", "second")]
    for folder, steps in zip(folders, (4, 5), strict=True):
        given = settings(tmp_path, "distill", **{"trainer.max_steps": steps})
        caplog.clear()
        with caplog.at_level("INFO", logger="pimlip_zoo"):
            assert train_run(prepare_run(load_config(None, given)), folder).steps == steps
    assert any("teacher: trained before" in record.getMessage() for record in caplog.records)
    first, second = (load_potential(folder / "teacher", difference=True) for folder in folders)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert baseline_of(folders[1] / "teacher") == "emt"


def test_pre_training_is_found_by_all_that_it_depends_on_and_by_no_more(tmp_path, monkeypatch):
    from pimlip_zoo.experiment import stages
    from pimlip_zoo.experiment.run import Outcome

    keys, given, key_of = [], settings(tmp_path, "pretrain"), stages.stage_key
    monkeypatch.setattr(stages, "stage_key", lambda experiment: keys.append(key_of(experiment)) or keys[-1])
    monkeypatch.setattr(
        stages, "train", lambda _, folder, resume, seconds: Outcome(folder, 0, 0.0, signal.SIGTERM)
    )

    def key(**changed):
        changed = {name.replace("__", "."): value for name, value in changed.items()}
        train_run(prepare_run(load_config(None, list((dict(given) | changed).items()))), tmp_path / "run")
        return keys[-1]

    first = key()
    assert key() == first
    assert key(trainer__max_steps=7) == first
    assert key(weak__labels__rate_after=0.5) == first
    assert key(data__valid="builtin:ethanol-gfn2/valid@0:3") == first  # a part of the pool validates
    assert key(data__train="builtin:ethanol-gfn2@0:8:1") == first  # the same structures under another name
    changed = [
        key(seed=1),
        key(optimizer__lr=0.003),
        key(weak__labels__learning_rate=0.004),
        key(weak__labels__steps=2),
        key(weak__labels__pool__structures=5),
        key(weak__labels__pool__seed=1),
        key(weak__labels__calculator=LJ),
        key(data__train="builtin:ethanol-gfn2@0:7"),
        key(data__labels=["energy"]),
        key(model__channels=8),
        key(trainer__ema_decay=0.5),
    ]
    assert [changed.count(k) for k in changed] == [1] * len(changed)
    assert first not in changed


def test_pre_training_that_was_interrupted_is_not_kept_until_it_is_done(tmp_path, monkeypatch):
    config = load_config(None, settings(tmp_path, "pretrain"))
    interrupted_in("pretrain", 1, monkeypatch)
    folder = tmp_path / "run"
    assert train_run(prepare_run(config), folder).signal == signal.SIGTERM
    kept = tmp_path / "cache" / "stages"
    assert not kept.exists()
    train_run(prepare_run(config), folder, resume=True)
    assert len(list(kept.glob("*/checkpoints/last.ckpt"))) == 1
    assert [path.name for path in kept.iterdir() if path.name.startswith(".")] == []


def test_a_teacher_is_asked_again_where_its_student_goes(tmp_path):
    options = {"weak.labels.iterations": 2, "model.name": "nequip"}
    given = settings(tmp_path, "distill")
    experiment = prepare_run(load_config(None, [*given, *options.items()]))
    assert train_run(experiment, tmp_path / "run").steps == 4
    folder = tmp_path / "run"
    assert [path.name for path in sorted(folder.iterdir()) if path.is_dir()] == [
        "checkpoints",
        "student-1",
        "teacher",
    ]
    assert baseline_of(folder / "student-1") is None
    stores = sorted(path.name for path in (tmp_path / "cache").glob("*.lmdb"))
    assert any("student-1" in name for name in stores)  # sampled with the student
    first, last = load_potential(folder / "student-1"), load_potential(folder)
    assert not all(torch.equal(a, b) for a, b in zip(first.parameters(), last.parameters(), strict=True))


def test_several_teachers_of_different_seeds_label_with_their_mean(tmp_path, monkeypatch):
    from pimlip_zoo.weak_labels import distill

    heard = []
    original = distill.ensemble_labels
    monkeypatch.setattr(distill, "ensemble_labels", lambda *a, **k: heard.append((a, k)) or original(*a, **k))
    options = {"weak.labels.teachers": 2, "weak.labels.agreement": 0.2}
    given = settings(tmp_path, "distill", **options)
    experiment = prepare_run(load_config(None, given))
    assert train_run(experiment, tmp_path / "run").steps == 4
    first, second = (load_potential(tmp_path / "run" / n, difference=True) for n in ("teacher", "teacher-2"))
    assert not all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    ((teachers, pool), keywords), *rest = heard
    assert not rest
    assert keywords == {"scale": 0.2}
    corrections = [predict_labels(teacher, pool) for teacher in teachers]
    taught = distill.teach(teachers, pool, 0.2)
    for index, (frame, cheap) in enumerate(zip(taught, pool, strict=True)):
        forces = np.stack([c[index].forces for c in corrections])
        np.testing.assert_allclose(frame.forces, cheap.forces + forces.mean(axis=0), atol=1e-12)
        assert frame.weight == pytest.approx(1 / (1 + forces.var(axis=0, ddof=1).mean() / 0.2**2))


def test_the_steps_of_a_teacher_and_its_student_are_those_asked_for(tmp_path):

    run(tmp_path, "distill")
    folder = tmp_path / "run"
    assert steps_done(folder / "teacher" / "checkpoints" / "last.ckpt") == 3
    assert steps_done(folder / "checkpoints" / "last.ckpt") == 4


@pytest.mark.parametrize("method", ["pretrain", "distill"])
def test_an_imported_potential_supervises_as_any_run_does(tmp_path, method):
    from pimlip_zoo.cli.import_ import write_run

    torch.manual_seed(0)
    options = {"model.name": "mace", "model.channels": 4, "model.l_max": 1, "model.correlation": 2}
    foundation = prepare(load_config(None, settings(tmp_path, None, **options))).potential
    write_run(foundation, tmp_path / "foundation", {"imported": "foundation.model", "head": None})
    level = ("weak.labels.calculator", f"run:{tmp_path / 'foundation'}")
    experiment = prepare_run(load_config(None, [*settings(tmp_path, method), level]))
    assert train_run(experiment, tmp_path / "run").steps == 4
    assert type(experiment.potential.model).__name__ == "NequIP"
    (pool,) = [s for s in (tmp_path / "cache").glob("*.lmdb") if len(FrameStore(s)) == 6]
    frames = list(FrameStore(pool))
    for frame, predicted in zip(frames, predict_labels(foundation, frames), strict=True):
        assert frame.energy == pytest.approx(predicted.energy, abs=1e-5)
        np.testing.assert_allclose(frame.forces, predicted.forces, atol=1e-5)


def test_an_ensemble_labels_with_its_mean_and_weights_by_agreement(tmp_path):
    frames = load_builtin("ethanol-gfn2")[:3]
    potentials = []
    for seed in range(3):
        config = load_config(None, [*settings(tmp_path), ("seed", seed)])
        potentials.append(prepare(config).potential.eval().requires_grad_(requires_grad=False))
    labelled = ensemble_labels(potentials, frames, scale=0.5)
    members = [predict_labels(potential, frames) for potential in potentials]
    for index, frame in enumerate(labelled):
        forces = np.stack([member[index].forces for member in members])
        assert frame.energy == pytest.approx(np.mean([member[index].energy for member in members]), abs=1e-9)
        np.testing.assert_allclose(frame.forces, forces.mean(axis=0), atol=1e-12)
        spread = np.sqrt(forces.var(axis=0, ddof=1).mean())
        assert frame.info["force_spread"] == pytest.approx(spread)
        assert frame.weight == pytest.approx(1 / (1 + (spread / 0.5) ** 2))
    assert ensemble_labels(potentials[:1], frames)[0].weight == 1.0
    with pytest.raises(InputError, match="no potential"):
        ensemble_labels([], frames)
    with pytest.raises(InputError, match="scale"):
        ensemble_labels(potentials, frames, scale=0.0)


def test_predicted_labels_are_those_of_single_structures(tmp_path):
    potential = prepare(load_config(None, settings(tmp_path))).potential.set_dtype(torch.float64)
    frames = load_builtin("ethanol-gfn2")[:5]
    together, alone = (
        predict_labels(potential, frames, 3),
        [predict_labels(potential, [f])[0] for f in frames],
    )
    for a, b in zip(together, alone, strict=True):
        assert a.energy == pytest.approx(b.energy, abs=1e-9)
        np.testing.assert_allclose(a.forces, b.forces, atol=1e-9)


def test_smaller_subsets_are_part_of_larger_ones_and_seeds_differ():
    frames = load_builtin("ethanol-gfn2")[:40]
    small, large = subset(frames, 5, 0), subset(frames, 20, 0)
    assert [id(f) for f in small] == [id(f) for f in large[:5]]
    assert {id(f) for f in subset(frames, 5, 1)} != {id(f) for f in small}
    with pytest.raises(InputError, match="there are 40"):
        subset(frames, 41, 0)


def test_an_interrupted_point_of_a_curve_goes_on_with_what_its_recipe_filled_in(tmp_path, monkeypatch):
    point, test = Point(3, "pretrain", 0), "builtin:ethanol-gfn2/test_300K@0:4"
    common = [s for s in settings(tmp_path, "pretrain", **{"weak.labels.reuse": False}) if s[0] != "seed"]
    interrupted_in("pretrain", 1, monkeypatch)
    assert run_points([point], common, [test], tmp_path / "curve") == signal.SIGTERM
    assert run_points([point], common, [test], tmp_path / "curve") is None
    (row,) = collect(tmp_path / "curve")
    assert row["steps"] == 4
    run_points([point], common, [test], tmp_path / "whole")
    assert {k: v for k, v in row.items() if "seconds" not in k} == {
        k: v for k, v in collect(tmp_path / "whole")[0].items() if "seconds" not in k
    }


def test_a_point_of_a_curve_that_was_interrupted_is_not_resumed_with_other_options(tmp_path, monkeypatch):
    point, test = Point(3, "pretrain", 0), "builtin:ethanol-gfn2/test_300K@0:4"
    common = [s for s in settings(tmp_path, "pretrain", **{"weak.labels.reuse": False}) if s[0] != "seed"]
    interrupted_in("pretrain", 1, monkeypatch)
    assert run_points([point], common, [test], tmp_path / "curve") == signal.SIGTERM
    with pytest.raises(InputError, match=r"weak\.labels\.steps: the run has 3, given is 5"):
        run_points([point], [*common, ("weak.labels.steps", 5)], [test], tmp_path / "curve")


def test_a_curve_with_more_structures_than_there_are_is_refused_before_the_first_training(tmp_path):
    points = [Point(3, "none", 0), Point(800, "none", 0)]
    common = [s for s in settings(tmp_path) if s[0] != "seed"]
    with pytest.raises(InputError, match="800 structures are asked for, there are "):
        run_points(points, common, ["builtin:ethanol-gfn2/test_300K@0:4"], tmp_path / "curve")
    assert not (tmp_path / "curve").exists()


def test_a_curve_is_a_table_with_means_and_is_not_repeated(tmp_path):
    points = [Point(size, weak, seed) for seed in (0, 1) for size in (3, 6) for weak in ("none", "piwsl")]
    common = [s for s in settings(tmp_path) if s[0] != "seed"]
    test = "builtin:ethanol-gfn2/test_300K@0:4"
    done = []
    assert run_points(points, common, [test], tmp_path / "curve", done=done.append) is None
    assert done == points
    rows = collect(tmp_path / "curve")
    assert len(rows) == 8
    summary = summarise(rows)
    assert [(row["size"], row["weak"], row["seeds"]) for row in summary] == [
        (3, "none", 2),
        (6, "none", 2),
        (3, "piwsl", 2),
        (6, "piwsl", 2),
    ]
    chosen = [row["forces_rmse"] for row in rows if row["size"] == 3 and row["weak"] == "none"]
    assert summary[0]["forces_rmse"] == pytest.approx(np.mean(chosen))
    assert summary[0]["forces_rmse_std"] == pytest.approx(np.std(chosen, ddof=1))
    older = [{k: v for k, v in row.items() if k != "stable_ps"} for row in rows]
    assert summarise(older) == summary  # tables that were written before have fewer columns
    result = tmp_path / "curve" / points[0].name / "result.json"
    before = result.stat().st_mtime_ns
    run_points(points[:1], common, [test], tmp_path / "curve")
    assert result.stat().st_mtime_ns == before
    assert json.loads(result.read_text())["steps"] == 4
    curve_plot(summary, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 5000
    with pytest.raises(InputError, match="cannot draw"):
        curve_plot(summary, tmp_path / "curve.txt")


def test_options_of_weak_labels_touch_only_the_ways_that_have_weak_labels(tmp_path):
    points = [Point(3, weak, 0) for weak in ("none", "piwsl", "pretrain")]
    test = "builtin:ethanol-gfn2/test_300K@0:2"
    run_points(points, settings(tmp_path, "pretrain"), [test], tmp_path / "curve")
    stages = {point.weak: (tmp_path / "curve" / point.name / "pretrain").exists() for point in points}
    assert stages == {"none": False, "piwsl": False, "pretrain": True}


def test_a_run_with_consistency_losses_and_a_pool_trains_and_resumes_exactly(tmp_path):
    options = {
        "weak.preset": "direct-consistent",
        "model.force_head": "direct",
        "weak.unlabelled": "builtin:ethanol-gfn2/test_600K@0:6",
        "weak.unlabelled_batch_size": 2,
        "weak.teacher": "ema",
    }
    whole = prepare_run(load_config(None, settings(tmp_path, **options)))
    train_run(whole, tmp_path / "whole")
    # Stop after half of the steps, as if it had been interrupted there: the schedule is that of the whole.
    config = load_config(None, [*settings(tmp_path, **options), ("schedule.name", "constant")])
    for name in ("one", "two"):
        train_run(prepare_run(config), tmp_path / name)
    for a, b in zip(
        load_potential(tmp_path / "one").parameters(),
        load_potential(tmp_path / "two").parameters(),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    short = [*settings(tmp_path, **options), ("schedule.name", "constant"), ("trainer.max_steps", 2)]
    train_run(prepare_run(load_config(None, short)), tmp_path / "half")
    train_run(prepare_run(config), tmp_path / "half", resume=True)
    full = torch.load(tmp_path / "one" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    half = torch.load(tmp_path / "half" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    for name, value in full.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(half[name], value, rtol=0, atol=0, msg=name)
        else:
            assert half[name] == value


def test_consistency_losses_begin_after_pre_training_or_act_throughout(tmp_path):
    direct = {"model.force_head": "direct", "weak.terms.pitc_central.weight": 1.0}
    ways = {
        "without": {"model.force_head": "direct"},
        "after": direct,
        "throughout": {**direct, "weak.labels.terms": "throughout"},
    }
    for name, options in ways.items():
        train_run(prepare_run(load_config(None, settings(tmp_path, "pretrain", **options))), tmp_path / name)
    states = {name: load_potential(tmp_path / name / "pretrain").state_dict() for name in ways}
    ends = {name: load_potential(tmp_path / name).state_dict() for name in ways}

    def same(one, two):
        return all(torch.equal(one[key], two[key]) for key in one)

    assert same(states["without"], states["after"])
    assert not same(states["after"], states["throughout"])
    assert not same(ends["without"], ends["after"])


@pytest.mark.parametrize("method", ["pretrain", "distill"])
def test_weak_labels_of_given_structures_train(tmp_path, method):
    from pimlip_zoo.datasets.readers import load_frames

    given = "builtin:ethanol-gfn2/test_600K@0:6"
    options = {
        "weak.unlabelled": given,
        "weak.labels.pool.method": "given",
        "weak.labels.pool.structures": 6,
    }
    experiment = prepare_run(load_config(None, settings(tmp_path, method, **options)))
    pool = Run(experiment, experiment.config.weak.labels, tmp_path).pool(shift=True)
    found = sorted(frame.positions[0, 0] for frame in pool)
    assert found == sorted(frame.positions[0, 0] for frame in load_frames(given))
    assert train_run(experiment, tmp_path / "run").signal is None


def test_given_structures_that_are_not_given_or_cannot_be_sampled_are_refused(tmp_path):
    with pytest.raises(InputError, match="no unlabelled structures"):
        load_config(None, [*settings(tmp_path, "pretrain"), ("weak.labels.pool.method", "given")])
    strange = [("weak.labels.pool.method", "given"), ("weak.unlabelled", "builtin:cual-emt@0:3")]
    with pytest.raises(InputError, match=r"cual-emt@0:3.*no labelled structure has .*leave it out"):
        prepare_run(load_config(None, [*settings(tmp_path, "pretrain"), *strange]))
    rounds = [("weak.labels.pool.method", "given"), ("weak.labels.iterations", 2), ("weak.unlabelled", DATA)]
    with pytest.raises(InputError, match="further rounds"):
        load_config(None, [*settings(tmp_path, "distill"), *rounds])


def test_a_pool_that_nothing_looks_at_and_impossible_terms_are_refused(tmp_path):
    with pytest.raises(InputError, match="no loss looks at"):
        prepare_run(load_config(None, [*settings(tmp_path), ("weak.unlabelled", DATA)]))
    with pytest.raises(InputError, match="no loss looks at"):
        prepare_run(load_config(None, [*settings(tmp_path, "delta"), ("weak.unlabelled", DATA)]))
    with pytest.raises(InputError, match="no curl"):
        prepare_run(load_config(None, [*settings(tmp_path), ("weak.terms.curl.weight", 1.0)]))
    with pytest.raises(InputError, match="needs force labels"):
        prepare_run(
            load_config(None, [*settings(tmp_path), ("data.labels", ["energy"]), ("weak.preset", "taylor")])
        )
    with pytest.raises(InputError, match="greater than or equal"):
        load_config(None, [("weak.terms.pitc_central.weight", -1)])
    with pytest.raises(InputError, match="pitc_central"):
        load_config(None, [("weak.terms.pitc_centrel.weight", 1)])
    with pytest.raises(InputError, match="amplitude"):
        load_config(None, [("weak.perturbation.amplitud", 1)])
    with pytest.raises(InputError, match="weight"):
        load_config(None, [("weak.terms.pitc_central.wieght", 1)])


def test_frames_keep_only_what_is_trained_on(tmp_path):
    experiment = prepare(load_config(None, [*settings(tmp_path), ("data.labels", ["energy"])]))
    assert experiment.potential.scale[0].item() == 1.0
    assert replace(experiment.frames[0]).forces is None


def test_the_configuration_of_a_run_has_every_option_of_its_recipe_and_none_of_another(tmp_path):
    for method, own in (
        ("pretrain", {"steps", "learning_rate", "rate_after", "terms", "stress", "reuse"}),
        ("delta", set()),
        (
            "distill",
            {"steps", "learning_rate", "teachers", "agreement", "iterations", "stress"}
            | {"reuse", "energy_weight", "label_share"},
        ),
        ("shared_head", {"weight", "batch_size", "stress"}),
    ):
        config = load_config(None, settings(tmp_path, method))
        written = config.model_dump(mode="json")["weak"]["labels"]
        assert set(written) - {"method", "calculator", "pool", "cache"} == own
        save_config(config, tmp_path / "config.yaml")
        assert load_config(tmp_path / "config.yaml", complete=True) == config


def test_a_configuration_that_an_earlier_version_wrote_keeps_its_meaning(caplog):
    every = {"steps": 5000, "learning_rate": None, "rate_after": None, "terms": "after", "teachers": 1}
    every |= {"agreement": None, "iterations": 1, "weight": 1.0, "batch_size": 10, "cache": None}
    for method in ("pretrain", "delta", "distill", "shared_head"):
        old = WeakLabelsConfig.model_validate({"method": method, "calculator": "emt", **every})
        assert old == WeakLabelsConfig(method=method, calculator="emt")
    assert caplog.text == ""
    WeakLabelsConfig.model_validate({"method": "pretrain", "teachers": 3})
    assert "weak.labels.teachers is an option of distill, curriculum, not of pretrain: ignored" in caplog.text


@pytest.mark.parametrize(
    ("setting", "match"),
    [
        (("weak.labels.method", "pretrian"), "no recipe for weak labels is called 'pretrian'.*pretrain"),
        (("weak.labels.method", 3), "valid string"),
        (("weak.labels.method", "second_head"), "install benchmarks/weak/baselines"),
        (("weak.preset", "second-head"), "install benchmarks/weak/baselines"),
        (("weak.labels.step", 3), r"weak\.labels\.step: there is no.*did you mean steps"),
        (("weak.labels.steps", 0), r"weak\.labels\.steps: .*greater than 0"),
        (("weak.labels.terms", "before"), r"weak\.labels\.terms: .*'after' or 'throughout'"),
        (("weak.labels.pool.structure", 3), "structures"),
    ],
)
def test_a_recipe_or_an_option_that_does_not_exist_is_named_with_the_nearest(tmp_path, setting, match):
    with pytest.raises(InputError, match=match):
        load_config(None, [*settings(tmp_path, "pretrain"), setting])


def test_options_of_weak_labels_are_kept_when_a_run_goes_on(tmp_path):
    config = load_config(None, settings(tmp_path, "pretrain"))
    train_run(prepare_run(config), tmp_path / "run")
    changed = load_config(None, [("weak.labels.rate_after", 0.5)], onto=tmp_path / "run" / "config.yaml")
    with pytest.raises(InputError, match=r"weak\.labels\.rate_after: the run has nothing, given is 0\.5"):
        check_settings(tmp_path / "run", changed)


def test_neighbour_lists_of_the_training_set_are_made_once_and_as_wide_as_the_losses_need(
    tmp_path, monkeypatch
):
    from pimlip_zoo.experiment import build

    made = []
    original = build.frame_to_sample

    def counting(frame, species, reach):
        made.append(round(reach, 6))
        return original(frame, species, reach)

    monkeypatch.setattr(build, "frame_to_sample", counting)
    narrow = prepare(load_config(None, settings(tmp_path)))
    assert made == [5.0] * 12  # eight structures, and four to validate on
    made.clear()
    wide = prepare(load_config(None, [*settings(tmp_path), ("weak.preset", "direct-consistent")]))
    assert len(made) == 12
    assert min(made[:8]) > 5.0
    assert made[8:] == [5.0] * 4
    one, other = (run.potential.model.config.avg_num_neighbors for run in (narrow, wide))
    assert one == other


CRYSTALS = {
    "data.train": "builtin:cual-emt@0:60:12",
    "data.valid": "builtin:cual-emt@6:30:12",
    "data.labels": ["energy", "forces", "stress"],
    "data.check_references": False,
}


@pytest.mark.parametrize("method", ["pretrain", "shared_head", "delta", "distill"])
def test_weak_labels_of_crystals_teach_stress_where_the_run_learns_it(tmp_path, method):
    experiment, _ = run(tmp_path, method, **CRYSTALS)
    assert "stress" in experiment.labels
    summary = evaluate(load_potential(tmp_path / "run", difference=True), CRYSTALS["data.valid"]).summary
    assert np.isfinite(summary["stress"]["rmse"])
    if method in ("pretrain", "distill"):
        stage = tmp_path / "run" / ("pretrain" if method == "pretrain" else "teacher")
        content = torch.load(stage / "checkpoints" / "last.ckpt", weights_only=True)
        assert "stress" in str(content)
    if method == "delta":
        # Reference and cheap level are the same here: nothing is left of energies, forces and stress.
        assert all(abs(frame.stress).max() < 1e-6 for frame in experiment.frames)


def test_stress_is_learnt_from_the_cheap_level_alone_when_asked_for_and_refused_where_there_is_none(tmp_path):
    options = {**CRYSTALS, "data.labels": ["energy", "forces"], "weak.labels.stress": True}
    experiment, outcome = run(tmp_path, "pretrain", **options)
    assert outcome.steps == 4
    assert "stress" not in experiment.labels
    metrics = (tmp_path / "run" / "pretrain" / "metrics.csv").read_text().splitlines()[0]
    assert "stress" in metrics
    with pytest.raises(InputError, match="gives no stress"):
        run(tmp_path / "b", "pretrain", **{"weak.labels.stress": True})


def test_predicted_labels_of_crystals_have_stress(tmp_path):
    experiment, _ = run(tmp_path, **CRYSTALS)
    frames = load_builtin("cual-emt")[:2]
    labelled = predict_labels(experiment.potential, frames)
    atoms = frame_to_atoms(frames[0])
    atoms.calc = pimlip_zoo.calculator(tmp_path / "run")
    found = predict_labels(load_potential(tmp_path / "run"), frames)
    np.testing.assert_allclose(found[0].stress, atoms.get_stress(voigt=False), atol=1e-6)
    mean = ensemble_labels([experiment.potential] * 2, frames)
    np.testing.assert_allclose(mean[1].stress, labelled[1].stress, atol=1e-12)


def test_a_recipe_says_how_long_its_stages_are(tmp_path):
    def before(method, **options):
        config = load_config(
            None, settings(tmp_path, method, **{f"weak.labels.{k}": v for k, v in options.items()})
        )
        return config.weak.labels.recipe().steps_before()

    assert before("pretrain") == 3
    assert before("distill") == 3
    assert before("distill", teachers=2, iterations=3) == 12
    assert before("delta") == before("shared_head") == 0


def test_the_stress_option_of_a_recipe_that_has_none_is_said_to_be_ignored(caplog):
    WeakLabelsConfig.model_validate({"method": "delta", "stress": True})
    assert "weak.labels.stress is an option of" in caplog.text
    assert "not of delta: ignored" in caplog.text


def test_stages_share_the_time_of_the_run_by_their_steps(tmp_path, monkeypatch):
    given = []

    def spy(experiment, folder, *, resume=False, seconds=None):
        given.append((folder.name, seconds))
        return train(experiment, folder, resume=resume, seconds=seconds)

    monkeypatch.setattr("pimlip_zoo.experiment.stages.train", spy)
    experiment, _ = run(tmp_path, "pretrain", **{"trainer.max_time": "700s"})
    assert given == [("pretrain", 300.0), ("run", 400.0)]  # three steps, four steps
    assert load_config(tmp_path / "run" / "config.yaml", complete=True).trainer.max_time == "700s"
    assert experiment.config.trainer.max_time == "700s"


def test_the_run_itself_has_a_third_of_the_time_however_long_its_stages_are():
    config = load_config(
        None,
        [
            ("trainer.max_time", "90s"),
            ("trainer.max_steps", 100),
            ("weak.labels", {"method": "pretrain", "steps": 9_900}),
        ],
    )
    one = Run(SimpleNamespace(config=config), config.weak.labels, Path("unused"))
    assert one._seconds() == pytest.approx(30.0)
    assert one._seconds(9_900) == pytest.approx(60.0)


def test_a_stage_that_its_time_cut_short_is_not_kept_for_other_runs(tmp_path, monkeypatch, caplog):
    def cut(experiment, folder, *, resume=False, seconds=None):
        return replace(train(experiment, folder, resume=resume, seconds=seconds), steps=2)

    with monkeypatch.context() as patched:
        patched.setattr("pimlip_zoo.experiment.stages.train", cut)
        caplog.set_level("INFO")
        run(tmp_path, "pretrain")
    steps = load_config(None, settings(tmp_path, "pretrain")).weak.labels.steps
    assert f"pretrain: ended at step 2 of {steps}" in caplog.messages
    caplog.clear()
    train_run(prepare_run(load_config(None, settings(tmp_path, "pretrain"))), tmp_path / "again")
    assert "trained before" not in caplog.text
