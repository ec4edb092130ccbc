"""A run with its recipe for weak labels: what it is prepared from, and the stages that it consists of.

Every stage is a training with a run folder of its own inside the run folder: ``pretrain``, ``teacher``. A stage that
is complete is not repeated when the run is resumed. Labels come from the cache of
:func:`pimlip_zoo.weak_labels.pool.labelled_pool`.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from pimlip_zoo.config import RunConfig, load_config
from pimlip_zoo.consistency.build import list_skin
from pimlip_zoo.consistency.config import WeakConfig
from pimlip_zoo.datasets.dataset import MadeSamples, Samples
from pimlip_zoo.datasets.frame import Frame
from pimlip_zoo.datasets.frames import Frames
from pimlip_zoo.datasets.neighbours import frame_to_sample
from pimlip_zoo.datasets.readers.left_out import say_not_kept
from pimlip_zoo.datasets.statistics import force_rms
from pimlip_zoo.errors import InputError
from pimlip_zoo.experiment.build import samples_of, unlabelled_frames, weak_terms
from pimlip_zoo.experiment.data import load_split, other_structures
from pimlip_zoo.experiment.ended import is_over
from pimlip_zoo.experiment.prepare import Experiment, prepare
from pimlip_zoo.experiment.ranks import from_rank_zero, join_ranks
from pimlip_zoo.experiment.recipe import for_stage
from pimlip_zoo.experiment.record import CONFIG, check_data, data_record, write_record
from pimlip_zoo.experiment.reuse import keep_stage, stage_key, take_stage
from pimlip_zoo.experiment.run import Outcome, steps_done, train
from pimlip_zoo.graph import Batch
from pimlip_zoo.losses.base import LOSSES, LossTerm
from pimlip_zoo.models.potential import Potential
from pimlip_zoo.training.checkpoint import baseline_of, read_checkpoint
from pimlip_zoo.training.present import cut_down
from pimlip_zoo.weak_labels.calculators import CheapCalculator, find_cheap_calculator
from pimlip_zoo.weak_labels.config import WeakLabelsConfig
from pimlip_zoo.weak_labels.offsets import fit_offset, shift_energies
from pimlip_zoo.weak_labels.pool import cached_labels, labelled_pool
from pimlip_zoo.weak_labels.pool_work import told_duration
from pimlip_zoo.weak_labels.recipe import StageOptions, StressOptions
from pimlip_zoo.written import parse_duration

log = logging.getLogger("pimlip_zoo")

ITSELF = 0.05
"""meV per structure, below which two levels of theory are one."""
OWN_TIME = 1 / 3
"""Of ``trainer.max_time``: what the run itself has at least, however many steps its stages have."""

Split = tuple[Sequence[Frame], Sequence[Frame]]
"""Training and validation structures."""

T = TypeVar("T")


def prepare_run(
    config: RunConfig,
    *,
    split: Split | None = None,
    checkpoint: Path | None = None,
    resumes: Path | None = None,
) -> Experiment:
    """:func:`pimlip_zoo.experiment.prepare`, as the recipe for weak labels wants it.

    Args:
        config: of the run.
        split: training and validation structures, where they are not what the configuration names.
        checkpoint: of the same run, when it is to be resumed; None: the last one of ``resumes``, if there is one.
        resumes: the folder of that run: other structures than it began with are refused.

    Raises:
        InputError: for data or options that cannot be used.
    """
    join_ranks(config)
    labels = config.weak.labels
    for name in labels.recipe().calculators(labels.calculator) if labels is not None else ():
        _found(name).make()  # what cannot be used is said here, before anything is done
    split = split or load_split(config)
    data = data_record(config, split)
    if resumes is not None:
        check_data(resumes, data)
        checkpoint = checkpoint or (_last(resumes) if _last(resumes).exists() else None)
    if labels is None:
        experiment = prepare(config, split=split, checkpoint=checkpoint)
    else:
        experiment = labels.recipe().prepare(Preparation(config, labels, split, checkpoint))
    return replace(experiment, data=data)


def train_run(experiment: Experiment, folder: Path, *, resume: bool = False) -> Outcome:
    """Train with all stages that the configuration asks for; see :func:`pimlip_zoo.experiment.train`.

    What the run began with is written first, so that it can be resumed from any stage.
    """
    labels = experiment.config.weak.labels
    begun = [folder, *(folder.iterdir() if folder.is_dir() and labels is not None else ())]
    if resume and not any(_last(stage).exists() for stage in begun):
        raise InputError("there is nothing to resume", file=_last(folder), hint="train without --resume")
    from_rank_zero(lambda: write_record(folder, experiment.config, experiment.data))
    if labels is None:
        return train(experiment, folder, resume=resume)
    return labels.recipe().train(Run(experiment, labels, folder))


@dataclass(frozen=True)
class Preparation:
    """A run with weak labels before its potential is built, as its recipe sees it."""

    config: RunConfig
    """Of the run."""
    labels: WeakLabelsConfig
    """The options of the weak labels."""
    split: Split
    """Training and validation structures."""
    checkpoint: Path | None = None
    """Of the same run, when it is resumed."""

    @property
    def calculator(self) -> CheapCalculator:
        """What gives the weak labels."""
        return _found(self.labels.calculator)

    @property
    def difference_to(self) -> str | None:
        """The calculator that the run has learnt the difference to so far, where it is resumed."""
        return None if self.checkpoint is None else baseline_of(self.checkpoint)

    def cheap_labels(self, frames: Sequence[Frame]) -> list[Frame]:
        """The structures with the cheap calculator's labels, from the cache where they are there."""
        return _cheap_labels(frames, self.labels)

    def structures(self, spec: str, species: Sequence[str]) -> Frames:
        """Structures of DATA that somebody labelled before; see :meth:`Run.structures`.

        Args:
            spec: DATA.
            species: of the potential.
        """
        return other_structures(spec, self.config.data, species)

    def prepare(self, *, split: Split | None = None, data: Mapping[str, Any] | None = None) -> Experiment:
        """The run as it would be without weak labels.

        Args:
            split: other structures, or other labels of them.
            data: other options of the section ``data``; what is written down is what was given.

        Raises:
            InputError: for data or options that cannot be used.
        """
        config = self.config
        if data is not None:
            settings = config.model_dump(exclude_unset=True)
            settings.setdefault("data", {}).update(data)
            config = RunConfig.model_validate(settings).note_stated(config.stated)
        experiment = prepare(config, split=split or self.split, checkpoint=self.checkpoint)
        if self.labels.recipe().samples:
            unlabelled_frames(config.weak, experiment.potential.species)  # says what cannot be sampled
        if data is None:
            return experiment
        given = self.config.data.model_dump(include=set(data))
        kept = experiment.config.data.model_copy(update=given)
        return replace(experiment, config=experiment.config.model_copy(update={"data": kept}))


@dataclass(frozen=True)
class Run:
    """A prepared run with weak labels, as its recipe sees it."""

    experiment: Experiment
    """The run."""
    labels: WeakLabelsConfig
    """The options of the weak labels."""
    folder: Path
    """Of the run; its stages have folders in it."""
    stages: dict[str, int] = field(default_factory=dict)
    """Steps of those that the recipe has come to so far, by name."""

    @property
    def begun(self) -> bool:
        """Whether the run itself has begun: its stages are over."""
        return _last(self.folder).exists()

    def train(self, experiment: Experiment | None = None) -> Outcome:
        """Carry out the run itself, or go on with it.

        Args:
            experiment: the run, changed by the recipe; None: as it was prepared.
        """
        experiment = experiment or self.experiment
        return train(experiment, self.folder, resume=self.begun, seconds=self._seconds())

    def _seconds(self, of_stage: int | None = None) -> float | None:
        """The part of ``trainer.max_time`` for the run itself, or for a stage of so many steps.

        The run and its stages share the time by their steps, but the run has a third of it at least: what it learns
        from the labels is what all of it is for.
        """
        trainer = self.experiment.config.trainer
        if trainer.max_time is None:
            return None
        before = max(self.labels.recipe().steps_before(), sum(self.stages.values()))
        own = max(trainer.max_steps / (trainer.max_steps + before), OWN_TIME) if before else 1.0
        share = own if of_stage is None else (1.0 - own) * min(of_stage / max(before, 1), 1.0)
        return parse_duration(trainer.max_time).total_seconds() * share

    def stage(self, name: str, experiment: Experiment, *, reuse: bool = False) -> Outcome:
        """Train a stage, go on with it, or skip it when it is complete.

        Args:
            name: of its folder.
            experiment: what is trained; often the run with other structures and :meth:`stage_config`.
            reuse: take it from the cache of weak labels when the same one has been trained before, and put it there.
        """
        folder, trainer = self.folder / name, experiment.config.trainer
        last, key, cache, steps = _last(folder), "", _cache(self.labels), trainer.max_steps
        self.stages[name] = steps
        seconds = self._seconds(steps)
        if last.exists():
            over, later = is_over(read_checkpoint(last), trainer, seconds), self._gone_on()
            if not over and later is not None:
                at = steps_done(last)
                log.info("%s: left as it is, at step %d of %d: %s rests on it", name, at, steps, later)
            if over or later is not None:
                return Outcome(folder, steps_done(last), 0.0, None)
        if reuse:
            key = from_rank_zero(lambda: stage_key(experiment))
            if not last.exists() and from_rank_zero(lambda: take_stage(key, folder, cache)):
                return self.stage(name, experiment)
        log.info("%s: %d structures, %d steps", name, len(experiment.train), steps)
        # What is compared when a run is resumed are the structures of the run, not those of a stage.
        outcome = train(replace(experiment, data=None), folder, resume=last.exists(), seconds=seconds)
        if outcome.signal is None and outcome.steps < steps:
            share = "" if seconds is None else f", with its share of --max-time, {told_duration(seconds)}"
            log.info("%s: ended at step %d of %d%s", name, outcome.steps, steps, share)
        if reuse and outcome.signal is None and outcome.steps >= steps:
            from_rank_zero(lambda: keep_stage(key, folder, cache))
        return outcome

    def _gone_on(self) -> Path | None:
        """What comes after the stages so far and has begun: it rests on them as they are."""
        if self.begun:
            return self.folder
        later = (place for place in sorted(self.folder.iterdir()) if place.name not in self.stages)
        return next((place for place in later if _last(place).exists()), None)

    def stage_config(self, options: StageOptions, structures: int, *, consistency: bool = False) -> RunConfig:
        """The run's configuration for a stage of its own length.

        Args:
            options: length and learning rate of the stage.
            structures: that the stage is trained on; what came from the training recipe depends on it.
            consistency: whether it has the run's consistency losses.
        """
        settings = self.experiment.config.model_dump()
        settings["trainer"]["max_steps"] = options.steps
        config = for_stage(RunConfig.model_validate(settings), structures, ("energy", "forces"))
        settings = config.model_dump()
        if options.learning_rate is not None:
            settings["optimizer"]["lr"] = options.learning_rate
        none = {"labels": None, "preset": None, "unlabelled": None}
        settings["weak"] = settings["weak"] | none if consistency else WeakConfig().model_dump()
        return RunConfig.model_validate(settings)

    def learnt(self, options: StressOptions, frames: Sequence[Frame]) -> tuple[str, ...]:
        """Which weak labels are learnt: energies, forces, and stress where the run learns it or the options ask for it.

        Args:
            options: of the recipe.
            frames: structures with weak labels.

        Raises:
            InputError: when stress is asked for and no structure has one.
        """
        has = any(frame.stress is not None for frame in frames)
        if options.stress and not has:
            raise InputError(
                f"{self.labels.calculator} gives no stress of these structures",
                key="weak.labels.stress",
                hint="leave it out: only structures that are periodic in all directions have one, and not every "
                "calculator gives it",
            )
        wanted = "stress" in self.experiment.labels if options.stress is None else options.stress
        return ("energy", "forces", "stress") if has and wanted else ("energy", "forces")

    def config_for(self, structures: int, labels: Sequence[str]) -> RunConfig:
        """The run's configuration where the recipe has it train on other structures and labels."""
        return for_stage(self.experiment.config, structures, labels)

    def prepare(self, method: str, config: RunConfig) -> Experiment:
        """A stage that is itself a run with weak labels of the same calculator.

        Args:
            method: the recipe of the stage, with its default options.
            config: of the stage.
        """
        labels = self.labels.model_dump(include=set(WeakLabelsConfig.model_fields)) | {"method": method}
        settings = config.model_dump() | {"weak": {"labels": labels}}
        split = (self.experiment.frames, self.experiment.valid_frames)
        return prepare_run(RunConfig.model_validate(settings), split=split)

    def fine_tuning(
        self, foundation: str, options: Mapping[str, Any], *, stage: str | None = None
    ) -> Experiment:
        """A stage that fine-tunes another run on the labels of this one, by the training recipe for that.

        Args:
            foundation: the run folder or checkpoint that it starts from.
            options: by dotted key, those that are not left to the recipe; None stands for what is.
            stage: its name, by which one that has begun keeps the version of the recipe that it began with.
        """
        config, split = self.experiment.config, (self.experiment.frames, self.experiment.valid_frames)
        trainer = config.trainer.model_dump(include={"device", "devices", "nodes", "threads", "products"})
        settings = [
            ("finetune.run", foundation),
            ("seed", config.seed),
            ("data.train", config.data.train),
            ("data.labels", list(self.experiment.labels)),
            ("data.check_references", config.data.check_references),
            *((f"trainer.{key}", value) for key, value in trainer.items()),
            *((key, value) for key, value in options.items() if value is not None),
            *(() if stage is None else self._recipe_of(stage)),
        ]
        return prepare(load_config(None, settings), split=split)

    def _recipe_of(self, stage: str) -> list[tuple[str, Any]]:
        """The training recipe that a stage began with; nothing where it has not begun."""
        begun = self.folder / stage / CONFIG
        if not (_last(self.folder / stage).exists() and begun.exists()):
            return []
        recipe = load_config(begun, complete=True).recipe
        return [("recipe.name", recipe.name), ("recipe.version", recipe.version)]

    def taught_by(self, name: str) -> list[Frame]:
        """Structures sampled around the training set, and labelled, by the potential of a stage."""
        return self._sampled(find_cheap_calculator(f"run:{self.folder / name}"))

    def trained(self, name: str, *, difference: bool = False) -> Potential:
        """The potential that a stage left.

        Args:
            name: of the stage.
            difference: whether it may be a correction to the cheap level.
        """
        from pimlip_zoo.training.checkpoint import load_potential

        return load_potential(self.folder / name, difference=difference)

    def take_weights(self, name: str) -> None:
        """Let the run start from the weights of a stage."""
        potential = self.experiment.potential
        trained, _ = cut_down(self.trained(name), potential.species)
        potential.load_state_dict({**potential.state_dict(), **trained.state_dict()})

    def scale_to(self, frames: Sequence[Frame]) -> None:
        """Scale the potential to forces of these structures where the reference labels say nothing of them."""
        experiment = self.experiment
        if experiment.config.potential.scale == "forces_rms" and force_rms(experiment.frames) is None:
            experiment.potential.scale.data.fill_(force_rms(frames) or 1.0)

    def samples(self, frames: Sequence[Frame], config: RunConfig | None = None) -> list[Batch]:
        """Samples whose neighbour lists reach as far as the consistency losses need.

        Args:
            frames: the structures.
            config: of the stage that they are for; None: of the run.
        """
        potential, weak = self.experiment.potential, (config or self.experiment.config).weak
        skin = list_skin(weak, potential.species, potential.cutoff, direct=potential.is_direct)
        return [frame_to_sample(frame, potential.species, potential.cutoff + skin) for frame in frames]

    def weak_terms(
        self, config: RunConfig, labels: Sequence[str], samples: Sequence[Batch]
    ) -> list[LossTerm]:
        """The consistency losses of a stage, checked against its samples."""
        return weak_terms(config, self.experiment.potential, labels, MadeSamples(samples))

    def pool(self, *, shift: bool, calculator: str | None = None) -> list[Frame]:
        """Structures sampled around the training set with the cheap calculator's labels.

        Args:
            calculator: another one than that of ``weak.labels.calculator``.
            shift: bring the energies to the reference level, by an offset for each species that is fitted on single
                points of the labelled structures.
        """
        frames = list(self.experiment.frames)
        pool = self._sampled(_found(calculator or self.labels.calculator))
        if not shift:
            return pool
        offset = fit_offset(frames, self.cheap_labels(frames, calculator), self.experiment.potential.species)
        spread = 1e3 * offset.spread
        log.info("the levels differ by %.1f meV per structure beside the offset of the species", spread)
        if spread < ITSELF and len(frames) > len(self.experiment.potential.species):
            log.warning(
                "the labels look like those of %s itself: it costs little, so label more structures with it and train "
                "on them",
                calculator or self.labels.calculator,
            )
        return shift_energies(pool, offset)

    def pool_of(self, name: str) -> list[Frame]:
        """Structures sampled with the potential of a stage, with the cheap calculator's labels."""
        stage = find_cheap_calculator(f"run:{self.folder / name}")
        return self.cheap_labels(self._sampled(stage))

    def cheap_labels(self, frames: Sequence[Frame], calculator: str | None = None) -> list[Frame]:
        """The structures with the cheap calculator's labels, from the cache where they are there.

        Args:
            frames: the structures.
            calculator: another one than that of ``weak.labels.calculator``.
        """
        return _cheap_labels(frames, self.labels, calculator)

    def structures(self, spec: str) -> Frames:
        """Structures of DATA that somebody labelled before, without isolated atoms.

        Args:
            spec: DATA; a store stays where it is.

        Raises:
            InputError: when it cannot be read, or has an element that the potential does not know.
        """
        return other_structures(spec, self.experiment.config.data, self.experiment.potential.species)

    def samples_of(self, frames: Sequence[Frame]) -> Samples:
        """Samples for the run's potential, made when they are asked for where the structures are in a store."""
        potential, data = self.experiment.potential, self.experiment.config.data
        return samples_of(frames, potential.species, potential.cutoff, data)

    def losses(self, labels: Sequence[str]) -> list[LossTerm]:
        """The run's supervised losses on these labels, whatever the run itself is trained on."""
        terms = self.experiment.config.loss.terms.items()
        found = {name: (LOSSES.get(name), options) for name, options in terms if options.weight > 0}
        made = [info.make(**dict(options)) for info, options in found.values() if info.label in labels]
        if not made:
            raise InputError(
                f"every loss on {' and '.join(labels)} has weight 0", key="loss", hint="give one a weight"
            )
        return made

    def once(self, make: Callable[[], T]) -> T:
        """What a function returns; of several ranks the first calls it, and the others get what it has."""
        return from_rank_zero(make)

    def _sampled(self, calculator: CheapCalculator) -> list[Frame]:
        frames, cache = list(self.experiment.frames), _cache(self.labels)
        weak, species = self.experiment.config.weak, self.experiment.potential.species
        not_kept: set[str] = set()
        unlabelled = unlabelled_frames(weak, species, not_kept=not_kept)

        def sample() -> list[Frame]:
            say_not_kept(str(weak.unlabelled), not_kept, "every atom moves where structures are sampled")
            return labelled_pool(frames, calculator, self.labels.pool, cache, _progress(), unlabelled)

        return from_rank_zero(sample)


def _found(name: str) -> CheapCalculator:
    return find_cheap_calculator(name, trust=True)


def _cheap_labels(
    frames: Sequence[Frame], labels: WeakLabelsConfig, calculator: str | None = None
) -> list[Frame]:
    found = _found(calculator or labels.calculator)
    return from_rank_zero(lambda: cached_labels(frames, found, _cache(labels), _progress()))


def _last(folder: Path) -> Path:
    return folder / "checkpoints" / "last.ckpt"


def _cache(labels: WeakLabelsConfig) -> Path | None:
    return None if labels.cache is None else Path(labels.cache)


_QUICK = 2.0
"""Seconds of labelling of which nothing is said but its end."""


def _progress() -> Callable[[int, int], None]:
    """Says how far the labelling is and how long it takes: a bar on terminals, a line every tenth elsewhere."""
    begun, told, terminal = time.monotonic(), -1, sys.stderr.isatty()
    first: int | None = None
    since = begun

    def report(done: int, total: int) -> None:
        nonlocal told, first, since
        if first is None:  # what was in the cache took no time, and what had to be set up is over
            first, since = done, time.monotonic()
        rate = (done - first) / max(time.monotonic() - since, 1e-9)
        left = f", {told_duration((total - done) / rate)} left" if rate > 0 and done < total else ""
        if terminal:
            full = 30 * done // total
            end = "\n" if done == total else ""
            sys.stderr.write(f"\rweak labels [{'#' * full}{'.' * (30 - full)}] {done}/{total}{left:16s}{end}")
            sys.stderr.flush()
        tenth = 10 * done // total
        if tenth != told and (done == total or time.monotonic() - begun > _QUICK):
            told = tenth
            log.info("weak labels: %d of %d structures%s", done, total, left, extra={"on_screen": terminal})

    return report
