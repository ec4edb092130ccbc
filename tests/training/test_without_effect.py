"""What users give for losses, optimiser, schedule, weak supervision has an effect, or is refused."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

from pimlip_zoo import api
from pimlip_zoo.cli.train import app
from pimlip_zoo.config import (
    LossSection,
    OptimizerSection,
    ScheduleSection,
    load_config,
    parse_settings,
    save_config,
)
from pimlip_zoo.datasets.builtin import load_builtin
from pimlip_zoo.datasets.neighbours import frame_to_sample
from pimlip_zoo.errors import InputError
from pimlip_zoo.experiment import prepare
from pimlip_zoo.experiment.effects import without_effect
from pimlip_zoo.experiment.run import _optimizer, run_clock, training_module
from pimlip_zoo.graph import collate
from pimlip_zoo.training.callbacks import Plateau, TimeLimit
from pimlip_zoo.training.schedule import READ_BY, learning_rate_factor
from pimlip_zoo.weak_labels.pool import PoolOptions
from pimlip_zoo.written import parse_duration

SMALL = [
    "data.train=builtin:ethanol-gfn2@:8",
    "model.channels=4",
    "model.radial_hidden=[4]",
    "model.num_layers=1",
    "model.l_max=1",
    "trainer.device=cpu",
    "trainer.max_steps=40",
    "trainer.valid_every=2",
    "schedule.warmup_steps=0",
]
OTHERS = {
    "warmup_steps": 7,
    "final": 0.5,
    "plateau_factor": 0.3,
    "plateau_patience": 3,
    "plateau_threshold": 0.5,
    "shorter_power": 0.7,
    "highest_lr": 0.0101,
    "lr": 0.005,
    "weight_decay": 0.5,
    "betas": [0.5, 0.9],
    "amsgrad": True,
    "equal_outputs": True,
    "distance": "mae",
    "delta": 0.002,
}
"""Another value of each option than its default."""
CENTRAL = "weak.terms.pitc_central.weight=1"
FORCES_ALONE = "weak.terms.loop_trapezoid.weight=1"
LABELS = "weak.terms.taylor_central.weight=1"
CURL = ("weak.terms.curl.weight=1", "model.force_head=direct")
OFF = "weak.terms.pitc_central.weight=0"
WARM = "weak.terms.pitc_central.schedule.name=warm_up"
SCHEDULES = ("constant", *sorted({name for names in READ_BY.values() for name in names}))


def configured(*settings):
    given = dict(setting.split("=", 1) for setting in [*SMALL, *settings])
    return load_config(None, parse_settings([f"{key}={value}" for key, value in given.items()]))


def idle(config, labels=("energy", "forces")):
    return {found.key for found in without_effect(config, labels)}


# ---- every option and every choice: it changes something, or it is known to change nothing


def rates(config):
    """Of a run whose validations improve by a tenth three times and then not at all, and that has time for 25 steps."""
    clock = run_clock(config)
    section, ends = config.schedule, math.inf
    factor = learning_rate_factor(
        section.name, warmup_steps=section.warmup_steps, clock=clock, final=section.final
    )
    plateau = Plateau(section.plateau_factor, section.plateau_patience, section.plateau_threshold, clock)
    limit, seconds = None, 0.0
    if config.trainer.max_time is not None:
        ends = parse_duration(config.trainer.max_time).total_seconds()
        highest = math.inf if section.highest_lr is None else section.highest_lr / config.optimizer.lr
        limit = TimeLimit(ends, clock, section.shorter_power, highest)
    found, scores = [], iter([1.0, 0.9, 0.81, *[0.8] * 100])
    for step in range(1, config.trainer.max_steps + 1):
        found.append(factor(step - 1))
        seconds += 4.0
        if limit is not None:
            clock.time_share = min(seconds / ends, 1.0)
            limit.on_train_batch_end(SimpleNamespace(global_step=step, should_stop=False))
        if section.name == "plateau" and step % config.trainer.valid_every == 0:
            metrics = {"valid_score": torch.tensor(next(scores))}
            plateau.on_validation_end(SimpleNamespace(sanity_checking=False, callback_metrics=metrics), None)
        if seconds >= ends:
            break
    return found


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("option", [key for key in ScheduleSection.model_fields if key != "name"])
@pytest.mark.parametrize(
    "more", [[], ["trainer.max_time=100s"], ["trainer.max_time=100s", "schedule.shorter_power=0.5"]]
)
def test_an_option_of_the_schedule_changes_the_rates_or_is_known_not_to(name, option, more):
    base = [f"schedule.name={name}", "schedule.plateau_patience=4", *more]
    other = configured(*base, f"schedule.{option}={OTHERS[option]}")
    changed = rates(other) != rates(configured(*base))
    assert changed == (f"schedule.{option}" not in idle(other))


def moved(config, experiment):
    """Weights after steps along gradients that are large first and small later."""
    torch.manual_seed(0)
    potential = experiment.potential
    begun = {name: value.clone() for name, value in potential.state_dict().items()}
    optimizer = _optimizer(SimpleNamespace(config=config, labels=experiment.labels), None, potential)
    for size in (1.0, 1e-2, 1e-3):
        for parameter in potential.parameters():
            parameter.grad = size * torch.randn_like(parameter)
        optimizer.step()
    ends = [value.clone() for value in potential.state_dict().values()]
    potential.load_state_dict(begun)
    return ends


@pytest.fixture(scope="module")
def experiment():
    return prepare(configured())


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("option", [key for key in OptimizerSection.model_fields if key != "name"])
def test_an_option_of_the_optimiser_changes_its_steps_or_is_known_not_to(name, option, experiment):
    base = [f"optimizer.name={name}"]
    other = configured(*base, f"optimizer.{option}={OTHERS[option]}")
    pairs = zip(moved(configured(*base), experiment), moved(other, experiment), strict=True)
    assert any(not torch.equal(a, b) for a, b in pairs) == (f"optimizer.{option}" not in idle(other))


def totals(config, experiment, labels, *, late):
    """The loss of a batch and its gradient, with these labels."""
    frames = load_builtin("ethanol-gfn2")[:3]
    potential = experiment.potential
    batch = collate([frame_to_sample(frame, potential.species, potential.cutoff) for frame in frames])
    module = training_module(replace(experiment, config=config, labels=labels))
    if late and module._late is not None:
        module._trainer = SimpleNamespace(
            global_step=config.trainer.max_steps - 1, accumulate_grad_batches=1, world_size=1
        )
    total, _, _ = module.loss(batch)
    return float(total.detach())


def chosen(*settings):
    return configured("loss.energy.weight=1", *settings)


@pytest.mark.parametrize("labels", [("energy",), ("energy", "forces")])
@pytest.mark.parametrize("term", [name for name in LossSection.model_fields if name != "late"])
@pytest.mark.parametrize(
    "setting",
    ["weight=0.5", "distance=mae", "delta=0.002", "distance=huber,delta=0.002", "distance=mae,weight=0"],
)
def test_an_option_of_a_loss_changes_the_loss_or_is_known_not_to(setting, term, labels, experiment):
    *before, last = [f"loss.{term}.{part}" for part in setting.split(",")]
    if last.endswith("weight=0"):  # beside a weight of 0 its other options
        before, last = [last], before[0]
    base, other = chosen(*before), chosen(*before, last)
    first, second = (totals(config, experiment, labels, late=False) for config in (base, other))
    assert (first != second) == (last.partition("=")[0] not in idle(other, labels))


@pytest.mark.parametrize("labels", [("energy",), ("energy", "forces")])
@pytest.mark.parametrize("start", [None, 0.5])
@pytest.mark.parametrize("term", ["energy", "energy_per_atom", "forces", "stress"])
def test_a_later_weight_changes_the_late_loss_or_is_known_not_to(term, start, labels, experiment):
    base = ["loss.energy.weight=0", *([] if start is None else [f"loss.late.start={start}"])]
    other = configured(*base, f"loss.late.{term}=3")
    first, second = (totals(config, experiment, labels, late=True) for config in (configured(*base), other))
    assert (first != second) == (f"loss.late.{term}" not in idle(other, labels))


def test_the_late_rate_changes_nothing_without_a_late_phase():
    assert "loss.late.rate" in idle(configured("loss.late.rate=0.5"))
    assert "loss.late.rate" not in idle(configured("loss.late.rate=0.5", "loss.late.start=0.5"))


def test_a_distance_leaves_the_weight_of_its_loss_as_it_is():
    """Of stress it is 100, of total energies 0."""
    loss = configured("loss.stress.distance=mae", "loss.energy.delta=0.1").loss
    assert (loss.stress.weight, loss.energy.weight) == (100.0, 0.0)


# ---- weak supervision


def weak_totals(*settings):
    """Loss and gradient of a step, each at several steps, with consistency losses."""
    experiment = prepare(configured(*settings).note_stated(None))
    batch = collate([experiment.train[index] for index in range(3)])
    module, found = training_module(experiment), []
    for step in (0, 3, 30):
        with torch.no_grad():
            for parameter in experiment.potential.parameters():
                parameter.mul_(1.02)  # a teacher follows
        module._trainer = SimpleNamespace(global_step=step, accumulate_grad_batches=1, world_size=1)
        module.zero_grad()
        total, _, _ = module.loss(batch)
        total.backward()
        gradients = [p.grad.norm() for p in experiment.potential.parameters() if p.grad is not None]
        found += [float(total.detach()), float(torch.stack(gradients).norm())]
    return found, idle(experiment.config)


@pytest.mark.parametrize(
    ("base", "setting"),
    [
        *(
            ([CENTRAL], setting)
            for setting in (
                "weak.terms.pitc_central.unit=total",
                "weak.terms.pitc_central.detach=forces",
                "weak.terms.pitc_central.detach=energies",
                "weak.terms.pitc_central.schedule.start=2",
                "weak.terms.pitc_central.schedule.steps=4",
                "weak.terms.pitc_central.schedule.last=0.5",
                "weak.perturbation.name=sphere",
                "weak.perturbation.amplitude=0.02",
                "weak.perturbation.species={H: 0.5}",
                "weak.perturbation.local_radius=2",
                "weak.strain=0.02",
                "weak.teacher=ema",
                "weak.teacher_decay=0.5",
                "weak.fraction=0.5",
                "weak.unlabelled_batch_size=2",
            )
        ),
        *(
            (
                [CENTRAL, WARM, "weak.terms.pitc_central.schedule.steps=3"],
                f"weak.terms.pitc_central.{setting}",
            )
            for setting in ("schedule.start=2", "schedule.steps=5", "schedule.last=0.5")
        ),
        (
            [CENTRAL, "weak.terms.pitc_central.schedule.name=decay"],
            "weak.terms.pitc_central.schedule.last=0.5",
        ),
        ([CENTRAL, "weak.teacher=ema"], "weak.teacher_decay=0.5"),
        ([CENTRAL, "weak.teacher=ema"], "weak.terms.pitc_central.detach=forces"),
        ([CENTRAL, "weak.teacher=ema"], "weak.terms.pitc_central.detach=energies"),
        ([CENTRAL, "weak.unlabelled=builtin:ethanol-gfn2@8:12"], "weak.unlabelled_batch_size=2"),
        ([FORCES_ALONE, "model.force_head=direct"], "weak.terms.loop_trapezoid.detach=energies"),
        ([LABELS], "weak.terms.taylor_central.detach=forces"),
        ([*CURL], "weak.terms.curl.unit=total"),
        ([*CURL], "weak.perturbation.amplitude=0.02"),
        ([OFF], "weak.terms.pitc_central.unit=total"),
        ([OFF], "weak.terms.pitc_central.detach=forces"),
        ([OFF], "weak.perturbation.amplitude=0.02"),
        ([OFF], "weak.fraction=0.5"),
        ([OFF], "weak.teacher=ema"),
        (["weak.terms.pitc_central.heads=direct"], "weak.terms.pitc_central.weight=3"),
        (
            ["weak.terms.pitc_central.heads=direct", "model.force_head=direct"],
            "weak.terms.pitc_central.weight=3",
        ),
    ],
)
def test_an_option_of_a_consistency_loss_changes_a_step_or_is_known_not_to(base, setting):
    first, _ = weak_totals(*base)
    second, known = weak_totals(*base, setting)
    assert (first != second) == (setting.partition("=")[0] not in known)


@pytest.mark.parametrize(
    ("settings", "keys"),
    [
        (["method=pretrain"], {"terms", "pool.amplitudes"}),
        (["method=pretrain", "terms=throughout"], {"terms", "pool.amplitudes"}),
        (["method=distill"], {"agreement", "pool.amplitudes"}),
        (["method=distill", "teachers=2"], {"pool.amplitudes"}),
        (["method=curriculum", "pool.method=both"], {"agreement"}),
        (["method=delta"], {f"pool.{name}" for name in PoolOptions.model_fields}),
        (
            ["method=shared_head", "pool.method=displaced"],
            {"pool.temperatures", "pool.timestep", "pool.stride", "pool.friction"},
        ),
    ],
)
def test_options_of_weak_labels_without_effect_are_known(settings, keys):
    found = idle(configured(*(f"weak.labels.{setting}" for setting in settings)))
    assert {key for key in found if key.startswith("weak.labels")} == {f"weak.labels.{key}" for key in keys}


def test_a_schedule_that_a_stage_before_the_run_may_reach_is_taken():
    pretrained = ["weak.labels.method=pretrain", "weak.labels.terms=throughout"]
    assert "weak.terms.pitc_central.schedule.start" not in idle(
        configured(CENTRAL, WARM, "weak.terms.pitc_central.schedule.start=50", *pretrained)
    )


# ---- what users give


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (
            ["schedule.name=constant", "schedule.final=0.5"],
            "schedule.final: has no effect: schedule.name is constant",
        ),
        (
            ["schedule.shorter_power=0.3"],
            "schedule.shorter_power: has no effect: trainer.max_time is not given",
        ),
        (["schedule.plateau_factor=0.5"], "schedule.plateau_factor: has no effect: schedule.name is linear"),
        (
            ["recipe.name=mace-torch", "schedule.final=0"],
            "schedule.final: has no effect: schedule.name is plateau",
        ),
        (["optimizer.name=adamw", "optimizer.equal_outputs=true"], "optimizer.name is adamw"),
        (["loss.stress.weight=10"], "loss.stress.weight: has no effect: no stress is trained on"),
        (["loss.stress={distance: mae}"], "loss.stress.distance: has no effect"),
        (
            ["data.labels=[energy]", "loss.forces.weight=3"],
            "loss.forces.weight: has no effect: data.labels leaves",
        ),
        (["loss.energy.distance=mae"], "loss.energy.weight is 0"),
        (["loss.forces.delta=0.1"], "loss.forces.delta: has no effect: the distance is mse"),
        (["loss.late.forces=3"], "loss.late.forces: has no effect: loss.late.start is not given"),
        (
            ["loss.late.start=0.5", "loss.late.energy=3"],
            "loss.late.energy: has no effect: loss.energy.weight is 0",
        ),
        (["loss.late.start=0.99"], "loss.late.start: has no effect: the run of 40 steps ends before"),
        (["schedule.warmup_steps=40"], "schedule.warmup_steps: has no effect: of 40 steps none has the rate"),
        (["schedule.name=plateau", "schedule.plateau_patience=18"], "with 20 validations the rate stays"),
        (["optimizer.betas=[2,0.9]"], "optimizer.betas"),
        (["weak.teacher_decay=0.9"], "weak.teacher_decay: has no effect: there is no teacher"),
        (
            ["weak.preset=gfn2", "weak.perturbation.amplitude=0.1"],
            "no weak loss looks at displaced structures",
        ),
        (
            ["weak.preset=piwsl", "weak.terms.pisc_triangle.weight=1"],
            "pisc_triangle is for direct force heads",
        ),
        (["weak.preset=delta", "weak.labels.pool.structures=9"], "delta samples no structures"),
        (
            ["trainer.patience=19"],
            "trainer.patience: has no effect: with 20 validations the run is over before",
        ),
        (["data.valid=builtin:ethanol-gfn2@9:12", "data.valid_fraction=0.5"], "data.valid is given"),
    ],
)
def test_what_would_change_nothing_is_refused_and_nothing_is_written(settings, says, tmp_path):
    merged = dict(setting.split("=", 1) for setting in [*SMALL, *settings])
    given = [part for key, value in merged.items() for part in ("--set", f"{key}={value}")]
    result = CliRunner().invoke(app, ["--out", str(tmp_path / "run"), *given])
    assert isinstance(result.exception, InputError)
    assert says in str(result.exception)
    assert "\n" not in str(result.exception)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "settings",
    [
        ["schedule.name=plateau", "schedule.plateau_patience=17"],
        ["schedule.warmup_steps=39"],
        ["loss.late.start=0.95"],
        ["loss.stress.weight=0"],
        ["data.labels=[energy]", "loss.forces.weight=0"],
        ["optimizer.name=adamw", "optimizer.equal_outputs=false"],
        ["weak.preset=gfn2", "data.labels=[energy]", "loss.forces.weight=3"],  # learnt before
        ["weak.preset=piwsl", "weak.terms.pisc_triangle.weight=0"],
        ["trainer.patience=18"],
        # Stages before the run are longer.
        ["weak.preset=pretrain", "trainer.patience=19"],
        ["weak.preset=distill", "schedule.warmup_steps=40"],
        ["weak.preset=pretrain", "schedule.name=plateau", "schedule.plateau_patience=18"],
    ],
)
def test_what_changes_something_or_says_what_is_so_is_taken(settings):
    config = configured(*settings)
    labels = ("energy", "forces") if config.data.labels == "auto" else tuple(config.data.labels)
    stated = {setting.partition("=")[0] for setting in settings}
    assert not stated & idle(config, labels)


def test_warm_ups_that_nobody_gave_and_that_never_end_are_said(caplog):
    config = load_config(None, parse_settings([*SMALL[:-1], "trainer.max_steps=10"]))
    with caplog.at_level("INFO", "pimlip_zoo"):
        prepare(config)
    assert "schedule.warmup_steps=100 is too long for this run: of 10 steps none has" in caplog.text


def test_a_point_of_a_curve_may_lack_what_others_have(tmp_path):
    """Of four structures one has a stress; the weight of the stress is given for all points."""
    from pimlip_zoo.datasets.writing import write_frames
    from pimlip_zoo.experiment.curve import Point, run_points, subset

    frames = [
        replace(frame, stress=None if number else frame.stress)
        for number, frame in enumerate(load_builtin("cual-emt")[:4])
    ]
    write_frames(tmp_path / "few.extxyz", frames)
    seed = next(s for s in range(20) if all(f.stress is None for f in subset(frames, 2, s)))
    settings = {
        **dict(parse_settings(SMALL[1:])),
        "data.train": str(tmp_path / "few.extxyz"),
        "data.valid": "builtin:cual-emt/valid@:2",
        "loss.stress.weight": 30.0,
        "trainer.max_steps": 2,
    }
    points = [Point(size, "none", seed) for size in (2, 4)]
    tests = ["builtin:cual-emt/test@:2"]
    assert run_points(points, list(settings.items()), tests, tmp_path / "curve") is None
    assert all((tmp_path / "curve" / point.name / "result.json").exists() for point in points)


def test_what_changes_no_point_of_a_curve_is_refused_and_so_are_tests_that_are_trained_on(tmp_path):
    from pimlip_zoo.datasets.writing import write_frames
    from pimlip_zoo.experiment.curve import Point, run_points

    frames = load_builtin("ethanol-gfn2")[:6]
    write_frames(tmp_path / "few.extxyz", frames)
    write_frames(tmp_path / "others.extxyz", load_builtin("ethanol-gfn2")[6:8])
    settings = {
        **dict(parse_settings(SMALL[1:])),
        "data.train": str(tmp_path / "few.extxyz"),
        "data.valid": str(tmp_path / "others.extxyz"),
        "trainer.max_steps": 2,
    }

    def run(more, test):
        return run_points([Point(3, "none", 0)], [*settings.items(), *more], [test], tmp_path / "curve")

    others = str(tmp_path / "others.extxyz")
    for key, value in (("schedule.plateau_factor", 0.5), ("loss.stress.weight", 10.0)):
        with pytest.raises(InputError, match=rf"{key}: has no effect"):
            run([(key, value)], others)
    with pytest.raises(InputError, match="are also in train"):
        run([], str(tmp_path / "few.extxyz"))
    assert not list((tmp_path / "curve").glob("*/result.json"))
    assert run([], others) is None


def test_what_a_run_has_written_goes_on_and_is_said(tmp_path, caplog):
    old = configured("trainer.max_steps=2", "schedule.name=constant")
    values = {"schedule.final": 0.5, "loss.stress.weight": 10.0}  # as versions wrote that took it
    schedule = old.schedule.model_copy(update={"final": 0.5})
    loss = old.loss.model_copy(update={"stress": old.loss.stress.model_copy(update={"weight": 10.0})})
    settings = {"trainer.max_steps": 2}
    before = old.model_copy(update={"schedule": schedule, "loss": loss}).note_stated(None)
    experiment = prepare(before)
    file = tmp_path / "config.yaml"
    save_config(experiment.config, file)
    api.train(settings, config=file, out=tmp_path / "run")
    api.train({"trainer.max_steps": 4}, out=tmp_path / "run", resume=True)
    for key, value in values.items():
        assert caplog.text.count(f"{key}={value} has no effect in this run") == 2
    with pytest.raises(InputError, match=r"schedule\.final: has no effect"):
        api.train({"schedule.final": 0.4, "trainer.max_steps": 6}, out=tmp_path / "run", resume=True)


def test_another_schedule_of_a_resumed_run_leaves_nothing_to_be_refused(tmp_path, caplog):
    given = dict(parse_settings([*SMALL, "trainer.max_steps=2"]))
    api.train(given, out=tmp_path / "run")  # the recipe has a final rate of 0
    api.train({"schedule.name": "constant", "trainer.max_steps": 4}, out=tmp_path / "run", resume=True)
    assert "no effect" not in caplog.text
