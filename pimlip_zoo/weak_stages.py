"""Weak labels from cheap physics as stages of a training: pre-training, a second head, differences, distillation.

Every stage is a training with a run folder of its own inside the run folder: ``pretrain``, ``teacher``. A stage that
is complete is not repeated when the run is resumed. Labels come from the cache of
:func:`pimlip_zoo.datasets.pool.labelled_pool`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pimlip_zoo.config import RunConfig
from pimlip_zoo.consistency.build import list_skin
from pimlip_zoo.consistency.config import WeakConfig
from pimlip_zoo.datasets.cheap import Supervisor, find_supervisor
from pimlip_zoo.datasets.frame import Frame
from pimlip_zoo.datasets.neighbours import frame_to_sample
from pimlip_zoo.datasets.offsets import add_labels, fit_offset, shift_energies, subtract_labels
from pimlip_zoo.datasets.pool import PoolOptions, cached_labels, labelled_pool
from pimlip_zoo.datasets.statistics import force_rms
from pimlip_zoo.distillation import ensemble_labels
from pimlip_zoo.errors import InputError
from pimlip_zoo.experiment import (
    Experiment,
    Outcome,
    check_data,
    data_record,
    for_stage,
    from_rank_zero,
    join_ranks,
    load_split,
    prepare,
    steps_done,
    train,
    unlabelled_frames,
    weak_terms,
    write_record,
)
from pimlip_zoo.graph import Batch
from pimlip_zoo.losses.weak_labels import WeakLabelsConfig
from pimlip_zoo.models.potential import Potential

if TYPE_CHECKING:
    from ase.calculators.calculator import Calculator

__all__ = ["Split", "prepare_run", "supervisor_of", "train_run", "weak_pool"]

log = logging.getLogger("pimlip_zoo")

Split = tuple[Sequence[Frame], Sequence[Frame]]
"""Training and validation structures."""

LABEL_SHARE = 0.3
"""Of what a distilled student sees, how much are reference labels; they are repeated to reach it."""


def prepare_run(
    config: RunConfig,
    *,
    split: Split | None = None,
    checkpoint: Path | None = None,
    resumes: Path | None = None,
) -> Experiment:
    """:func:`pimlip_zoo.experiment.prepare`, the labels made differences where the run learns those.

    Args:
        config: of the run.
        split: training and validation structures, where they are not what the configuration names.
        checkpoint: of the same run, when it is to be resumed.
        resumes: the folder of that run: other structures than it began with are refused.

    Raises:
        InputError: for data or options that cannot be used.
    """
    join_ranks(config)
    if config.weak.labels is not None:
        supervisor_of(config.weak.labels).make()  # what cannot be used is said here, before anything is done
    split = split or load_split(config)
    data = data_record(config, split)
    if resumes is not None:
        check_data(resumes, data)
    return replace(_prepared(config, split, checkpoint), data=data)


def _prepared(config: RunConfig, split: Split, checkpoint: Path | None) -> Experiment:
    labels = config.weak.labels
    if labels is None:
        return prepare(config, split=split, checkpoint=checkpoint)
    if labels.method != "delta":
        experiment = prepare(config, split=split, checkpoint=checkpoint)
        unlabelled_frames(config.weak, experiment.potential.species)
        return experiment
    differences = [subtract_labels(frames, _cheap_labels(frames, labels)) for frames in split]
    if any(f.stress is not None for f in split[0]) and all(f.stress is None for f in differences[0]):
        log.warning("%s gives no stress: the labels' stress is not trained on", labels.calculator)
    # The difference has no isolated atoms: its references are fitted.
    settings = config.model_dump(exclude_unset=True)
    settings.setdefault("data", {}).update(energy_references="least_squares", check_references=False)
    experiment = prepare(
        RunConfig.model_validate(settings), split=(differences[0], differences[1]), checkpoint=checkpoint
    )
    supervisor = supervisor_of(labels)
    baseline = {"calculator": supervisor.name, "version": supervisor.version}
    # What is written is what was given.
    given = config.data.model_dump(include={"energy_references", "check_references"})
    data = experiment.config.data.model_copy(update=given)
    config = experiment.config.model_copy(update={"data": data})
    return replace(experiment, config=config, baseline=baseline)


def train_run(experiment: Experiment, folder: Path, *, resume: bool = False) -> Outcome:
    """Train with all stages that the configuration asks for; see :func:`pimlip_zoo.experiment.train`.

    What the run began with is written first, so that it can be resumed from any stage.
    """
    labels = experiment.config.weak.labels
    stages = ("",) if labels is None or labels.method == "delta" else ("", "pretrain", "teacher")
    if resume and not any(_last(folder / stage).exists() for stage in stages):
        raise InputError("there is nothing to resume", file=_last(folder), mend="train without --resume")
    from_rank_zero(lambda: write_record(folder, experiment.config, experiment.data))
    if labels is None or labels.method == "delta":
        return train(experiment, folder, resume=resume)
    main_begun = _last(folder).exists()
    if labels.method == "pretrain":
        if main_begun:
            return train(experiment, folder, resume=resume)
        outcome = _pretrain(experiment, labels, folder / "pretrain")
        return outcome if outcome.signal is not None else train(experiment, folder)
    if labels.method in ("second_head", "shared_head"):
        return train(_with_second_head(experiment, labels), folder, resume=main_begun)
    student, outcome = _student(experiment, labels, folder)
    if student is None:
        return outcome
    return train(student, folder, resume=main_begun)


def supervisor_of(labels: WeakLabelsConfig) -> Supervisor:
    """The calculator that gives the weak labels.

    Raises:
        InputError: for an unknown one, or one that is not installed.
    """
    return find_supervisor(labels.calculator, trust=True, load_run=_load_run)


def _load_run(run: str) -> Calculator:
    import pimlip_zoo

    return pimlip_zoo.calculator(run)


def weak_pool(experiment: Experiment, labels: WeakLabelsConfig, *, shift: bool) -> list[Frame]:
    """Structures sampled around the training set with the cheap calculator's labels.

    Args:
        experiment: the run.
        labels: the options.
        shift: bring the energies to the reference level, by an offset for each species that is fitted on single
            points of the labelled structures.
    """
    frames = list(experiment.frames)
    pool = _sampled(experiment, supervisor_of(labels), labels)
    if not shift:
        return pool
    offset = fit_offset(frames, _cheap_labels(frames, labels), experiment.potential.species)
    log.info(
        "the levels differ by %.1f meV per structure beside the offset of the species", 1e3 * offset.spread
    )
    return shift_energies(pool, offset)


# Of several ranks the first samples and labels, and the others get what it has.


def _sampled(experiment: Experiment, supervisor: Supervisor, labels: WeakLabelsConfig) -> list[Frame]:
    options, frames = PoolOptions(**labels.pool.model_dump()), list(experiment.frames)
    unlabelled = unlabelled_frames(experiment.config.weak, experiment.potential.species)
    return from_rank_zero(
        lambda: labelled_pool(frames, supervisor, options, _cache(labels), _progress(), unlabelled)
    )


def _cheap_labels(frames: Sequence[Frame], labels: WeakLabelsConfig) -> list[Frame]:
    supervisor = supervisor_of(labels)
    return from_rank_zero(lambda: cached_labels(frames, supervisor, _cache(labels)))


def _pretrain(experiment: Experiment, labels: WeakLabelsConfig, folder: Path) -> Outcome:
    """Train on the pool and leave the result in the experiment's potential."""
    pool = weak_pool(experiment, labels, shift="energy" in experiment.labels)
    potential = experiment.potential
    if experiment.config.potential.scale == "forces_rms" and force_rms(experiment.frames) is None:
        # Energies alone say nothing of the scale of forces; the pool does.
        potential.scale.data.fill_(force_rms(pool) or 1.0)
    held = max(1, min(len(pool) // 10, 200))
    config = _stage_config(experiment.config, labels, len(pool) - held)
    samples = _widened(pool, config, potential)
    order = np.random.default_rng(config.seed).permutation(len(samples)).tolist()
    learnt = _learnt(experiment, labels, pool)
    stage = replace(
        experiment,
        config=config,
        labels=learnt,
        train=[samples[index] for index in order[held:]],
        valid=[samples[index] for index in order[:held]],
        weak=weak_terms(config, potential, learnt, samples),
    )
    outcome = _stage(stage, folder)
    if outcome.signal is None:
        _take_weights(potential, folder)
    return outcome


def _learnt(experiment: Experiment, labels: WeakLabelsConfig, pool: Sequence[Frame]) -> tuple[str, ...]:
    """Which weak labels are learnt.

    Raises:
        InputError: when stress is asked for and no structure has one.
    """
    has = any(frame.stress is not None for frame in pool)
    if labels.stress and not has:
        raise InputError(
            f"{labels.calculator} gives no stress of these structures",
            key="weak.labels.stress",
            mend="leave it out: only structures that are periodic in all directions have one, and not every calculator",
        )
    wanted = "stress" in experiment.labels if labels.stress is None else labels.stress
    return ("energy", "forces", "stress") if has and wanted else ("energy", "forces")


def _take_weights(potential: Potential, run: Path) -> None:
    """Those of a run, where it has them."""
    from pimlip_zoo.training.checkpoint import load_potential

    potential.load_state_dict({**potential.state_dict(), **load_potential(run).state_dict()})


def _with_second_head(experiment: Experiment, labels: WeakLabelsConfig) -> Experiment:
    """The experiment with the weak labels beside the reference ones, asked of a second head."""
    from pimlip_zoo.losses.pool import Pool
    from pimlip_zoo.losses.second_head import SecondHead, SecondPotential, SharedFeatures

    potential, config = experiment.potential, experiment.config
    frames = weak_pool(experiment, labels, shift="energy" in experiment.labels)
    samples = [frame_to_sample(frame, potential.species, potential.cutoff) for frame in frames]
    pool = Pool(samples, labels.batch_size)
    options = {
        "energy_weight": config.loss.energy_per_atom.weight,
        "force_weight": config.loss.forces.weight,
        "stress_weight": config.loss.stress.weight
        if "stress" in _learnt(experiment, labels, frames)
        else 0.0,
        "weight": labels.weight,
        "seed": config.seed,
    }
    term: SecondHead
    torch.manual_seed(config.seed + 1)
    model = type(potential.model)(potential.model.config, potential.species).to(potential.model.dtype)
    if labels.method == "shared_head":
        twin = Potential(
            model,
            repulsion=potential.repulsion,
            trainable_scale=bool(potential.scale.requires_grad),
        )
        term = SharedFeatures(pool, potential, twin, **options)
    else:
        term = SecondPotential(pool, Potential(model, scale=potential.scale.detach().clone()), **options)
    return replace(experiment, extra_terms=(*experiment.extra_terms, term))


def _student(
    experiment: Experiment, labels: WeakLabelsConfig, folder: Path
) -> tuple[Experiment | None, Outcome]:
    """The experiment with teachers' labels beside the reference ones; None while a stage is interrupted.

    A teacher is a difference model (stages ``teacher``, ``teacher-2``, ...); the structures that they label are sampled
    by the cheap calculator. In further rounds a student (stage ``student-K``) samples more structures: the teachers are
    asked where a student goes.
    """
    from pimlip_zoo.training.checkpoint import load_potential

    teachers: list[Potential] = []
    for number in range(labels.teachers):
        stage = folder / ("teacher" if number == 0 else f"teacher-{number + 1}")
        outcome = _stage(_teacher(experiment, labels, number), stage)
        if outcome.signal is not None:
            return None, outcome
        teachers.append(load_potential(stage, difference=True))
    pool = weak_pool(experiment, labels, shift=False)
    taught = from_rank_zero(lambda: _teach(teachers, pool, labels))
    for number in range(1, labels.iterations):
        student = _taught(experiment, labels, taught)
        config = _stage_config(experiment.config, labels, len(student.train))
        student = replace(student, config=config, weak=())
        outcome = _stage(student, folder / f"student-{number}")
        if outcome.signal is not None:
            return None, outcome
        _take_weights(experiment.potential, folder / f"student-{number}")
        more = _sampled_by_student(experiment, labels, folder / f"student-{number}")
        taught += from_rank_zero(partial(_teach, teachers, more, labels))
    return _taught(experiment, labels, taught), outcome


def _teacher(experiment: Experiment, labels: WeakLabelsConfig, number: int) -> Experiment:
    """A difference model with a seed of its own."""
    settings = _stage_config(experiment.config, labels, len(experiment.train)).model_dump()
    settings["weak"] = {"labels": {**labels.model_dump(), "method": "delta"}}
    settings["seed"] = experiment.config.seed + 1000 * number
    split = (experiment.frames, experiment.valid_frames)
    return prepare_run(RunConfig.model_validate(settings), split=split)


def _teach(teachers: Sequence[Potential], pool: Sequence[Frame], labels: WeakLabelsConfig) -> list[Frame]:
    """The cheap calculator's labels, corrected by the teachers."""
    corrections = ensemble_labels(teachers, pool, scale=labels.agreement)
    corrected = zip(add_labels(pool, corrections), corrections, strict=True)
    return [replace(frame, weight=correction.weight) for frame, correction in corrected]


def _taught(experiment: Experiment, labels: WeakLabelsConfig, taught: Sequence[Frame]) -> Experiment:
    """The experiment with a teacher's structures beside the labelled ones, which are repeated to have their share."""
    config, potential = experiment.config, experiment.potential
    samples = _widened(taught, config, potential)
    repeats = max(1, round(LABEL_SHARE / (1.0 - LABEL_SHARE) * len(samples) / len(experiment.train)))
    if "forces" not in experiment.labels and config.potential.scale == "forces_rms":
        potential.scale.data.fill_(force_rms(taught) or 1.0)
    mixed: list[Batch] = [*samples, *(list(experiment.train) * repeats)]
    learnt = tuple(sorted({*experiment.labels, *_learnt(experiment, labels, taught)}))
    return replace(experiment, config=for_stage(config, len(mixed), learnt), train=mixed, labels=learnt)


def _widened(frames: Sequence[Frame], config: RunConfig, potential: Potential) -> list[Batch]:
    """Samples whose neighbour lists reach as far as the weak losses of a stage need."""
    skin = list_skin(config.weak, potential.species, potential.cutoff, direct=potential.is_direct)
    return [frame_to_sample(frame, potential.species, potential.cutoff + skin) for frame in frames]


def _sampled_by_student(experiment: Experiment, labels: WeakLabelsConfig, student: Path) -> list[Frame]:
    """Structures of a student's molecular dynamics with the cheap calculator's labels."""
    supervisor = find_supervisor(f"run:{student}", trust=False, load_run=_load_run)
    return _cheap_labels(_sampled(experiment, supervisor, labels), labels)


def _stage(stage: Experiment, folder: Path) -> Outcome:
    """Train a stage, go on with it, or skip it when it is complete."""
    last = _last(folder)
    if last.exists():
        done = steps_done(last)
        if done >= stage.config.trainer.max_steps:
            return Outcome(folder, done, 0.0, None)
    log.info("%s: %d structures, %d steps", folder.name, len(stage.train), stage.config.trainer.max_steps)
    # What is compared when a run is resumed are the structures of the run, not those of a stage.
    return train(replace(stage, data=None), folder, resume=last.exists())


def _stage_config(config: RunConfig, labels: WeakLabelsConfig, structures: int) -> RunConfig:
    """The run's configuration for a stage of its own length, without weak losses unless pre-training has them, too.

    Args:
        config: of the run.
        labels: the options.
        structures: that the stage is trained on; what came from the recipe depends on it.
    """
    settings: dict[str, Any] = config.model_dump()
    settings["trainer"]["max_steps"] = labels.steps
    settings = for_stage(RunConfig.model_validate(settings), structures, ("energy", "forces")).model_dump()
    if labels.learning_rate is not None:
        settings["optimizer"]["lr"] = labels.learning_rate
    weak = {"labels": None, "preset": None, "unlabelled": None}
    throughout = labels.method == "pretrain" and labels.terms == "throughout"
    settings["weak"] = settings["weak"] | weak if throughout else WeakConfig().model_dump()
    return RunConfig.model_validate(settings)


def _last(folder: Path) -> Path:
    return folder / "checkpoints" / "last.ckpt"


def _cache(labels: WeakLabelsConfig) -> Path | None:
    return None if labels.cache is None else Path(labels.cache)


def _progress() -> Any:
    """Says every tenth how far the sampling is."""
    told = -1

    def report(done: int, total: int) -> None:
        nonlocal told
        tenth = 10 * done // total
        if tenth != told:
            told = tenth
            log.info("weak labels: %d of %d structures", done, total)

    return report
