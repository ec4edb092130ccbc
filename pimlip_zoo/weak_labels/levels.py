"""Several levels of theory at once: one backbone, and a readout for each level that is kept with the run.

The reference labels are one level, and the one that a run stands for unless another is asked for (``--level``). Every
further level is a cheap calculator, which labels structures sampled around the training set, or a file that somebody
labelled before. Each has energy references of its own, so that its energies are on its own zero.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import NonNegativeFloat, PositiveInt, model_validator
from torch import nn

from pimlip_zoo.datasets.frame import LABELS, Frame
from pimlip_zoo.datasets.frames import Frames, as_frames
from pimlip_zoo.datasets.statistics import fit_references
from pimlip_zoo.datasets.summary import facts_of
from pimlip_zoo.errors import InputError, did_you_mean
from pimlip_zoo.graph import Batch, Labels, graph_to
from pimlip_zoo.losses.base import LEVEL_NAME, Evaluated, LossTerm, LossValue
from pimlip_zoo.losses.pool import Pool, step_generator
from pimlip_zoo.section import Section
from pimlip_zoo.weak_labels.offsets import fit_offset
from pimlip_zoo.weak_labels.recipe import Recipe, RecipeOptions, recipe
from pimlip_zoo.weak_labels.twin import readout_names, twin_of

if TYPE_CHECKING:
    from pimlip_zoo.experiment import Experiment, Outcome
    from pimlip_zoo.experiment.stages import Preparation, Run
    from pimlip_zoo.models.potential import Potential
    from pimlip_zoo.weak_labels.pool import PoolOptions

log = logging.getLogger("pimlip_zoo")

KEY = "weak.levels"
"""What users write; the configuration keeps it as ``weak.labels.levels``."""

REFERENCE = "reference"
"""The level of the reference labels, which every run has."""


class LevelOptions(Section):
    """A level of theory beside that of the reference labels."""

    name: str | None = None
    """What stands after ``--level``; null: the calculator's name, or the file's without its ending."""
    calculator: str | None = None
    """As ``weak.labels.calculator``: it labels structures sampled around the training set (``weak.labels.pool``)."""
    data: str | None = None
    """DATA with labels of this level, instead of a calculator."""
    quantities: Literal["auto"] | list[Literal["energy", "forces", "stress"]] = "auto"
    """Which of its labels are learnt; auto: energies and forces where it has them, stress where the run learns it."""
    weight: NonNegativeFloat = 1.0
    """Factor of the loss on its labels; 0: the level is left out."""
    batch_size: PositiveInt = 10
    """Structures of the level in a step, beside those with reference labels."""

    @model_validator(mode="before")
    @classmethod
    def _is_a_table(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            raise InputError(f"{values!r} is no level", key=KEY, hint="write [{calculator: gfn2}]")
        for name in values:
            if name not in cls.model_fields:
                hint = did_you_mean(str(name), cls.model_fields)
                raise InputError(f"a level has no option {name!r}", key=KEY, hint=hint)
        return values

    @model_validator(mode="after")
    def _has_one_source(self) -> LevelOptions:
        if (self.calculator is None) == (self.data is None):
            which = "neither a calculator nor data" if self.data is None else "a calculator and data"
            raise InputError(
                f"a level has {which}", key=KEY, hint="give one of them: calculator: gfn2, or data: FILE"
            )
        if self.quantities == []:
            raise InputError("a level has no quantities", key=KEY, hint="name some, or leave it out")
        return self

    @property
    def called(self) -> str:
        """Its name, given or made of where its labels come from.

        Raises:
            InputError: when it cannot stand for the level in options and names of columns.
        """
        name = self.name if self.name is not None else _short(self.calculator, self.data)
        if not re.fullmatch(LEVEL_NAME, name):
            raise InputError(
                f"{name!r} is no name for a level", key=KEY, hint="name: letters, digits and _ . + - alone"
            )
        if name == REFERENCE:
            raise InputError(
                f"{REFERENCE!r} is the level of the reference labels", key=KEY, hint="give it another name"
            )
        return name


def _short(calculator: str | None, data: str | None) -> str:
    """The name of a level whose name was not given."""
    if calculator is not None:
        return PurePath(calculator.partition("?")[0].rpartition(":")[2]).name
    first = str(data).split(",")[0].partition("?")[0].partition("@")[0]
    if first.startswith("builtin:"):
        return first.removeprefix("builtin:").split("/")[0]
    return PurePath(first).name.partition(".")[0]


class LevelsOptions(RecipeOptions):
    """Options of training on several levels."""

    levels: tuple[LevelOptions, ...] = ()
    """The levels beside that of the reference labels; ``weak.levels`` is short for it."""

    def learns(self, labels: Sequence[str]) -> Sequence[str]:
        """Stress where the run learns it, or a level names it."""
        named = {name for level in self.levels if level.quantities != "auto" for name in level.quantities}
        return (*labels, "energy", "forces", *named)

    @model_validator(mode="before")
    @classmethod
    def _is_a_list(cls, values: Any) -> Any:
        given = values.get("levels", []) if isinstance(values, Mapping) else []
        if not isinstance(given, list | tuple):
            raise InputError(f"{given!r} is no list of levels", key=KEY, hint="write [{calculator: gfn2}]")
        return values


@dataclass(frozen=True)
class Level:
    """A level with its labels."""

    name: str
    """Of the level."""
    frames: Frames
    """Structures with those of its labels that are learnt."""
    labels: tuple[str, ...]
    """Which these are."""
    references: NDArray[np.float64] | None
    """(S,) eV, of its energies; None: it has none, and its energies are on the zero of the reference level."""


@recipe("levels", options=LevelsOptions)
class Levels(Recipe[LevelsOptions]):
    """Train on several levels of theory together; each keeps a readout of its own, for ``--level``."""

    def __init__(self, options: LevelsOptions) -> None:
        super().__init__(options)
        self.active = [level for level in options.levels if level.weight > 0]
        self.samples = any(level.calculator is not None for level in self.active)

    def check(self, pool: PoolOptions) -> None:  # noqa: ARG002
        """Refuse levels without a name of their own, and none at all."""
        if not self.options.levels:
            raise InputError("no level is given", key=KEY, hint="such as weak.levels=[{calculator: gfn2}]")
        names = [level.called for level in self.options.levels]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise InputError(f"two levels are called {twice!r}", key=KEY, hint="give each a name: name: ...")

    def calculators(self, given: str) -> Sequence[str]:  # noqa: ARG002
        """Those of the levels."""
        return [level.calculator for level in self.active if level.calculator is not None]

    def files(self) -> Mapping[str, str]:
        """Those of the levels."""
        return {level.called: level.data for level in self.active if level.data is not None}

    def prepare(self, run: Preparation) -> Experiment:
        """The run as it is; files and architectures that cannot be used are refused here, before it begins."""
        experiment = run.prepare()
        if self.active:
            readout_names(experiment.potential)
        for option in self.active:
            if option.data is not None:
                frames = run.structures(option.data, experiment.potential.species)
                _learnt(option, frames, experiment.labels)
        return experiment

    def train(self, run: Run) -> Outcome:
        """The run with a loss for each level beside its own."""
        found = {
            number: _labelled(run, option)
            for number, option in enumerate(self.options.levels)
            if option.weight
        }
        for level in found.values():
            if "forces" in level.labels:
                run.scale_to(level.frames)
                break
        terms = [self.term(run, number, level) for number, level in found.items()]
        for option in self.options.levels:
            if not option.weight:
                log.info("level %s: weight 0, left out", option.called)
        experiment = run.experiment
        return run.train(replace(experiment, extra_terms=(*experiment.extra_terms, *terms)))

    def term(self, run: Run, number: int, level: Level) -> LevelTerm:
        """The loss on a level.

        Args:
            run: of which it is a part.
            number: of the level among the options; it has random numbers of its own.
            level: with its labels.
        """
        option, experiment = self.options.levels[number], run.experiment
        samples = run.samples_of(level.frames)
        log.info(
            "level %s: %d structures, of which it learns %s; its readout is kept, and chosen with --level %s",
            *(level.name, len(level.frames), ", ".join(level.labels), level.name),
        )
        references = None if level.references is None else torch.as_tensor(level.references)
        return LevelTerm(
            level.name,
            Pool(cast("Sequence[Batch]", samples), option.batch_size, "weak.levels"),
            experiment.potential,
            run.losses(level.labels),
            references=references,
            weight=option.weight,
            seed=experiment.config.seed + 7919 * (number + 1),
        )


def _labelled(run: Run, option: LevelOptions) -> Level:
    """A level with its labels and its zero of energy."""
    if option.calculator is not None:
        frames: Frames = as_frames(run.pool(shift=False, calculator=option.calculator))
    else:
        frames = run.structures(str(option.data))
    labels = _learnt(option, frames, run.experiment.labels)
    references = None
    if "energy" in labels:
        references = _moved(run, frames) if option.calculator is None else _offset(run, option.calculator)
    return Level(option.called, frames.with_labels(labels), labels, references)


def _offset(run: Run, calculator: str) -> NDArray[np.float64]:
    """(S,) eV, energies of atoms at a calculator's level, from its single points of the labelled structures.

    The sampled ones are hotter: what the levels differ in would become part of the offset.
    """
    experiment = run.experiment
    species, frames = experiment.potential.species, list(experiment.frames)
    cheap = run.cheap_labels(frames, calculator)
    if "energy" not in experiment.labels:
        return fit_references(cheap, species).energies
    offset = fit_offset(frames, cheap, species)
    spread = 1e3 * offset.spread
    log.info("%s differs by %.1f meV per structure beside the offset of the species", calculator, spread)
    own: NDArray[np.float64] = experiment.potential.energy_references.detach().cpu().numpy() - offset.energies
    return own


def _moved(run: Run, frames: Frames) -> NDArray[np.float64]:
    """(S,) eV, energies of atoms at the level of a file: those of the run, moved by what fits of both differ in.

    Readouts then start from energies of one size, whether the run's references are isolated atoms or a fit.
    """
    experiment = run.experiment
    species = experiment.potential.species
    own = fit_references(frames, species).energies
    if "energy" not in experiment.labels:
        return own
    reference = experiment.potential.energy_references.detach().cpu().numpy()
    return own + reference - fit_references(experiment.frames, species).energies


def _learnt(option: LevelOptions, frames: Sequence[Frame], reference: Sequence[str]) -> tuple[str, ...]:
    """Which labels of a level are learnt.

    Args:
        option: of the level.
        frames: its structures.
        reference: which reference labels the run learns.

    Raises:
        InputError: when one that was asked for is nowhere, or there is none.
    """
    facts, source = facts_of(frames), option.data or option.calculator
    present = [label for label in LABELS if facts.count(label)]
    if option.quantities == "auto":
        learnt = [label for label in present if label != "stress" or "stress" in reference]
        if learnt:
            return tuple(learnt)
        raise InputError(
            f"{source} has no energy or forces", key=KEY, hint="name the keys with ?energy_key=..."
        )
    missing = [label for label in option.quantities if label not in present]
    if missing:
        raise InputError(
            f"no structure of level {option.called} ({source}) has {' or '.join(missing)}",
            key=KEY,
            hint=f"it has {', '.join(present) or 'no labels'}",
        )
    return tuple(label for label in LABELS if label in option.quantities)


class LevelTerm(LossTerm):
    """The labels of a level, asked of readouts of its own on the features of the potential: multi-fidelity learning.

    The level shares everything with the potential but the readouts and the energy references. The losses are those of
    the run, with their weights and distances.

    Args:
        level: its name; the term's is ``level_NAME``.
        pool: its structures.
        potential: the one that is trained, whose features it shares.
        losses: on its labels.
        references: (S,) eV, its energies of atoms apart; None: the potential's.
        weight: of the term.
        seed: of the batches.

    Raises:
        InputError: when the architecture does not say what its readouts are.
    """

    def __init__(
        self,
        level: str,
        pool: Pool,
        potential: Potential,
        losses: Sequence[LossTerm],
        *,
        references: torch.Tensor | None = None,
        weight: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__(f"level_{level}", weight)
        self.level, self.pool, self.seed = level, pool, seed
        self.losses = nn.ModuleList(losses)
        self.names = (*readout_names(potential), "energy_references")
        twin = cast("Potential", twin_of(potential, self.names))
        for name in self.names[:-1]:
            twin.get_parameter(name).requires_grad_(True)  # also where those of the potential are frozen
        if references is not None:
            twin.energy_references.data.copy_(references)
        self.own = nn.ParameterList(twin.get_parameter(name) for name in self.names)
        self._twin = (twin,)  # no submodule: what it shares is the potential's

    def levels(self) -> Mapping[str, Mapping[str, str]]:
        """See :class:`LossTerm`."""
        return {self.level: {name: f"own.{place}" for place, name in enumerate(self.names)}}

    def forward(self, evaluated: Evaluated) -> LossValue:
        """See :class:`LossTerm`; the batch of reference labels is not looked at."""
        step, device = evaluated.step, evaluated.predictions.energy.device
        drawn = self.pool.draw(step_generator(self.seed, step.batch))
        labels = Labels(*(value.to(device) for value in drawn.labels))
        batch = Batch(graph_to(drawn.graph, device), labels)
        losses = [cast("LossTerm", module) for module in self.losses]
        wanted = [loss.requests(batch, step) for loss in losses]
        twin = self._twin[0].to(device)
        predictions = twin(
            batch.graph, forces=any(w.forces for w in wanted), virial=any(w.virial for w in wanted)
        )
        inner = replace(evaluated, batch=batch, predictions=predictions)
        total = predictions.energy.new_zeros(())
        for loss in losses:
            total = total + loss.weight * loss(inner).mean()
        # Weights of a direct head whose forces are not learnt are not used, and ranks wait for every gradient.
        for parameter in self.own:
            if parameter.requires_grad:
                total = total + 0.0 * parameter.sum()
        return LossValue(total, torch.ones_like(total))
