"""Whether a cheap level of theory can help with a set of labels, found out before anything is spent on it.

Trainings on the labels and on their difference to the cheap level, equally long, on the same structures, are measured
on structures that neither saw. Where the difference is learnt better than the surface, the cheap level knows what the
labels do not say; where it is no smoother than the surface, recipes do harm, however small the difference is to begin
with. A short training does not tell the two apart, for at first the errors are as the sizes are: a difference is small,
and little of it is learnt. So there are two lengths, and what counts is the ratio of the errors that they lead to in
a longer run (``docs/guide/advise.md``).
"""

from __future__ import annotations

import csv
import logging
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from pimlip_zoo.config import load_config
from pimlip_zoo.datasets.coverage import is_isolated_atom
from pimlip_zoo.datasets.electrons import electrons_of
from pimlip_zoo.datasets.frame import Frame, without_uncounted
from pimlip_zoo.datasets.readers import load_frames
from pimlip_zoo.datasets.statistics import composition_matrix, fit_references, species_of
from pimlip_zoo.errors import InputError, no_such_file
from pimlip_zoo.experiment import prepare, train
from pimlip_zoo.training.progress import duration
from pimlip_zoo.training.recipes import DEFAULT_RECIPE, RunFacts, get_recipe
from pimlip_zoo.weak_labels.calculators import find_cheap_calculator
from pimlip_zoo.weak_labels.ensemble import predict_labels
from pimlip_zoo.weak_labels.offsets import fit_offset, subtract_labels
from pimlip_zoo.weak_labels.pool import cached_labels

if TYPE_CHECKING:
    from pimlip_zoo.experiment.prepare import Experiment
    from pimlip_zoo.models.potential import Potential

log = logging.getLogger("pimlip_zoo")

HELPS, HELPS_MUCH = 0.9, 0.6
"""Errors of the difference over those of the surface: below the first a difference model is advised where even the
interval's end is, below the second recipes for standalone models, too."""
SMOOTH, ROUGH = 1.0, 3.0
"""Roughness of the difference up to which recipes for standalone models are advised, and difference models. Longer runs
learn the surface better, and a rough difference hardly."""
CLOSE = 0.2
"""Difference over the error of the short training on the labels, below which a level is as good as the labels."""
SAME = 1e-4
"""Difference over the surface, below which the labels are of this level itself."""
_ITSELF = "is what these were labelled with, so labels cost little: label more structures and train on them"
LEAST = 10
"""Structures, fewer of which cannot be divided into what is learnt and what is measured."""
COVERED = 0.9
SHORTER = 4
"""How many times shorter the first pair of trainings is."""
_TRIAL = 10
"""Steps of a training that only tells how long the others take."""
_DRAWS = 2000
_ATOMS_OF_A_STEP = 200
_SAME_PLACE = 1e-4
_OWNED = {
    "data.train": "give --data",
    "data.labels": "give --labels",
    "model.name": "give --model",
    "seed": "give --seed",
    "trainer.max_steps": "give --steps",
    "weak": "name levels with --calculator",
    **dict.fromkeys(
        ("data.valid", "data.test", "data.valid_fraction", "data.energy_references"),
        "the comparison divides the structures and fits their energies itself",
    ),
    **dict.fromkeys(
        ("trainer.valid_every", "trainer.max_time", "trainer.patience"),
        "the trainings have to be as long as they were planned: give --steps",
    ),
}
"""Options, or sections of them, that the comparison sets; what to do instead."""


@dataclass(frozen=True)
class Errors:
    """Root mean squares on the structures that are measured; eV/Å by component and eV per atom."""

    forces: float | None
    energies: float | None


@dataclass(frozen=True)
class Finding:
    """What is known of one cheap level."""

    level: str
    difference: Errors
    """To the labels, energies after an offset for each species."""
    learnt: Errors
    """What a short training on the difference leaves of it."""
    ratio: float = 0.0
    """Error of the training on the difference over that of the one on the labels: forces, or else energies."""
    early: float = 0.0
    """The same of trainings that are :data:`SHORTER` times shorter."""
    expected: float = 0.0
    """The same at :attr:`Advice.length`, by the power of the length that both lead to; never below ``ratio``."""
    low: float = 0.0
    """Of the interval of ``expected`` by bootstrap over the measured structures."""
    high: float = 0.0
    roughness: float = 0.0
    """Share of the difference that is left over the share of the surface that is left; above 1 it is rougher."""
    recipe: str | None = None
    """Of ``--weak``; None: none is advised."""
    reason: str = ""


@dataclass(frozen=True)
class Advice:
    """What to do."""

    structures: int
    energies: int
    force_components: int
    measured: int
    """Structures that nothing was trained on."""
    steps: int
    """Of the longer trainings; 0 where none was needed, as the labels are of a level itself."""
    length: int
    """Steps that ``expected`` is for: a whole run's, or :data:`SHORTER` times ``steps`` where that is less; with
    energies alone ``steps``."""
    surface: Errors
    """Size of the labels, energies after an offset for each species."""
    plain: Errors
    """What a short training on the labels reaches."""
    findings: tuple[Finding, ...]
    skipped: dict[str, str]
    """Levels that could not be looked at, and why."""

    @property
    def same(self) -> Finding | None:
        """The level that the labels are of themselves, if one is: no recipe is worth anything then."""
        alike = (finding for finding in self.findings if finding.reason == _ITSELF)
        return next(alike, None)

    @property
    def best(self) -> Finding | None:
        """The finding to follow; None: train without a recipe."""
        if self.same is not None:
            return None
        useful = [finding for finding in self.findings if finding.recipe is not None]
        return min(useful, key=lambda finding: finding.expected) if useful else None

    @property
    def sentence(self) -> str:
        """The advice in one line."""
        if not self.findings:
            return "no cheap level could be looked at: train without a recipe"
        if self.best is None:
            closest = self.same or min(self.findings, key=lambda finding: finding.expected)
            return f"no recipe: {closest.level} {closest.reason}"
        return f"{self.best.recipe} with {self.best.level}: it {self.best.reason}"


def known_levels(frames: Sequence[Frame]) -> tuple[list[str], dict[str, str]]:
    """The cheap levels that come with the package and its extras, and why others of them are not looked at."""
    import importlib.util

    from ase.calculators.emt import parameters
    from ase.data import chemical_symbols

    names, skipped = [], {}
    symbols = {chemical_symbols[number] for frame in frames for number in np.unique(frame.numbers)}
    if importlib.util.find_spec("tblite") is None:
        skipped["gfn2, gfn1"] = "tblite is not installed: pip install 'pimlip-zoo[xtb]'"
    elif any(frame.pbc.any() for frame in frames):
        skipped["gfn2, gfn1"] = "take seconds for a crystal; name them with --calculator to look at them"
    else:
        names += ["gfn2", "gfn1"]
    if symbols <= set(parameters):
        names.append("emt")
    return names, skipped


def labels_of_level(name: str, frames: Sequence[Frame]) -> list[Frame]:
    """The structures with the labels of a cheap level.

    Args:
        name: a calculator as ``weak.labels.calculator`` takes it, or a file in which the same structures are labelled,
            in any order.
        frames: the structures.

    Raises:
        InputError: for a calculator that fails, or a file that lacks a structure.
    """
    path = Path(name.split("?", maxsplit=1)[0].split("@", maxsplit=1)[0])
    if not path.is_file():
        if ":" not in name and path.suffix:
            raise no_such_file(path)
        return cached_labels(frames, find_cheap_calculator(name, trust=True))
    labelled = load_frames(name)
    known: dict[bytes, list[Frame]] = {}
    for frame in labelled:
        known.setdefault(frame.numbers.tobytes(), []).append(frame)
    found = []
    for index, frame in enumerate(frames):
        same = [other for other in known.get(frame.numbers.tobytes(), []) if _alike(frame, other)]
        if not same:
            raise InputError(
                f"has no structure like the one with index {index} of the labelled ones",
                file=name,
                hint="label the same structures, elements in the same order, of the same charge",
            )
        if any(_labels_differ(same[0], other) for other in same[1:]):
            raise InputError(
                f"has the structure with index {index} of the labelled ones {len(same)} times, with different labels",
                file=name,
                hint="leave one of them",
            )
        found.append(replace(same[0], positions=frame.positions, cell=frame.cell, info=frame.info))
    return found


def _alike(frame: Frame, other: Frame) -> bool:
    """Whether a structure is the same one, with the same electrons."""
    return (
        bool(np.abs(other.positions - frame.positions).max(initial=0.0) < _SAME_PLACE)
        and bool(np.abs(other.cell - frame.cell).max() < _SAME_PLACE)
        and bool(np.array_equal(other.pbc, frame.pbc))
        and electrons_of(other.numbers, other.info) == electrons_of(frame.numbers, frame.info)
    )


def _labels_differ(one: Frame, other: Frame) -> bool:
    pairs = ((one.energy, other.energy), (one.forces, other.forces))
    return any(
        (a is None) != (b is None) or (a is not None and b is not None and not np.array_equal(a, b))
        for a, b in pairs
    )


def check_settings(settings: Sequence[tuple[str, Any]]) -> None:
    """Refuse what the trainings cannot be told, as it would be overridden or make the comparison another one.

    Args:
        settings: (dotted key, value).

    Raises:
        InputError: naming what to do instead.
    """
    for key, _ in settings:
        for owned, instead in _OWNED.items():
            if key == owned or key.startswith(f"{owned}."):
                raise InputError("is set by the comparison", key=f"--set {key}", hint=instead)


def advise(
    frames: Sequence[Frame],
    levels: dict[str, Sequence[Frame] | InputError],
    *,
    model: str = "mace",
    steps: int = 1000,
    seed: int = 0,
    settings: Sequence[tuple[str, Any]] = (),
    told: Callable[[str], None] = lambda _: None,
) -> Advice:
    """Compare cheap levels with labels.

    Args:
        frames: with energies, forces or both; isolated atoms are left out.
        levels: the same frames with the labels of each level, or why there are none.
        model: architecture of the trainings.
        steps: of the longer ones; the others have a quarter.
        seed: of their weights, and of the structures that are measured.
        settings: further (dotted key, value) of these trainings, see :func:`check_settings`.
        told: called with what is being done.

    Raises:
        InputError: for too few structures, labels that are neither energies nor forces or that only some have,
            settings that the comparison has itself.
    """
    check_settings(settings)
    kept, chosen, by_forces = _counted(frames)
    order = np.random.default_rng(seed).permutation(len(chosen))
    measured = order[: max(3, len(chosen) // 4)]
    taught = order[len(measured) :]
    valid, learnt = taught[: max(1, len(taught) // 8)], taught[max(1, len(taught) // 8) :]
    options = [
        ("model.name", model),
        *([("model.channels", 16)] if model in ("mace", "nequip") else []),
        ("data.batch_size", _batch(chosen)),
        ("seed", seed),
        ("data.train", "labels of the advice"),
        ("data.check_references", False),
    ]
    lengths = (max(steps // SHORTER, 1), steps)
    clock = _Clock(told, lengths * (1 + sum(not isinstance(cheap, InputError) for cheap in levels.values())))

    def train_on(labels: Sequence[Frame], name: str, length: int) -> _Squares:
        clock.begins(f"{name}: {length} steps on {len(learnt)} structures")
        split = ([labels[i] for i in learnt], [labels[i] for i in valid])
        validations = 2 if length == _TRIAL else 10
        zero = [("data.energy_references", _references(split[0], chosen))]
        often = [("trainer.max_steps", length), ("trainer.valid_every", max(1, length // validations))]
        with tempfile.TemporaryDirectory(prefix="pimlip-advise-") as folder:
            config = load_config(None, [*options, *zero, *often, *settings])
            if length == _TRIAL:
                config.note_stated(None)  # too short for a warm-up that the others have room for
            experiment = prepare(config, split=split)
            potential = _trained(experiment, Path(folder) / "run")
            clock.ended(Path(folder) / "run", length)
        of_measured = [labels[i] for i in measured]
        return _squares(of_measured, predict_labels(potential, of_measured))

    def pair(labels: Sequence[Frame], name: str) -> _Pair:
        short, long = (train_on(labels, name, length) for length in lengths)
        return _Pair(short, long)

    tested = [chosen[i] for i in measured]
    surface = _size(_leveled(chosen, chosen, measured))
    advice = partial(
        Advice,
        structures=len(chosen),
        energies=sum(frame.energy is not None for frame in chosen),
        force_components=sum(3 * len(f.numbers) for f in chosen if f.forces is not None),
        measured=len(tested),
        surface=surface,
    )
    differences, skipped = _differences(levels, chosen, kept, by_forces=by_forces)
    sizes = {name: _size(_leveled(labels, chosen, measured)) for name, labels in differences.items()}
    quantity = "forces" if by_forces else "energies"
    for name, size in sizes.items():
        if getattr(size, quantity) <= SAME * getattr(surface, quantity):
            # Nothing that a training could tell would change the advice.
            itself = Finding(name, size, Errors(None, None), reason=_ITSELF)
            return advice(steps=0, length=0, plain=Errors(None, None), findings=(itself,), skipped={})
    if lengths[0] > 2 * _TRIAL:
        train_on(chosen, "how long it takes", _TRIAL)
    plain = pair(chosen, "labels")
    # Carried on no further than the two lengths are apart: early ratios of smooth differences grow, too, and then stay.
    # Energies are few, a number for each structure: their ratios at two lengths differ by chance.
    length = max(min(_whole_run(model, chosen), SHORTER * steps), steps) if by_forces else steps
    power = math.log(length / lengths[1]) / math.log(lengths[1] / lengths[0])
    findings = [
        _finding(name, surface, sizes[name], plain, pair(labels, name), power, seed, by_forces=by_forces)
        for name, labels in differences.items()
    ]
    return advice(
        steps=steps,
        length=length,
        plain=plain.long.errors,
        findings=tuple(sorted(findings, key=lambda finding: finding.expected)),
        skipped=skipped,
    )


def _counted(frames: Sequence[Frame]) -> tuple[list[int], list[Frame], bool]:
    """Indices of the structures that count, these with the labels that count, and whether forces do."""
    kept = [index for index, frame in enumerate(frames) if frame.weight and not is_isolated_atom(frame)]
    if len(kept) < LEAST:
        raise InputError(
            f"{len(kept)} structures are too few to say anything",
            key="--data",
            hint=f"give {LEAST} or more; without, the table of docs/guide/weak-supervision.md is the best guess",
        )
    chosen = [replace(without_uncounted(frames[index]), stress=None) for index in kept]
    without = [index for index, frame in zip(kept, chosen, strict=True) if frame.forces is None]
    by_forces = not without
    if 0 < len(without) < len(chosen):
        raise InputError(
            f"{len(without)} of {len(chosen)} structures have no forces, the first is that with index {without[0]}",
            key="--data",
            hint="leave them out, or compare energies: --labels energy",
        )
    if not by_forces and any(frame.energy is None for frame in chosen):
        raise InputError(
            "some structures have neither energy nor forces", key="--data", hint="leave them out"
        )
    return kept, chosen, by_forces


def _differences(
    levels: dict[str, Sequence[Frame] | InputError],
    chosen: Sequence[Frame],
    kept: Sequence[int],
    *,
    by_forces: bool,
) -> tuple[dict[str, list[Frame]], dict[str, str]]:
    """The structures with the labels less those of each level, and why there are none of some levels.

    Args:
        levels: labels of all structures, or why there are none.
        chosen: the structures that count, with what labels count.
        kept: their indices among all.
        by_forces: forces are compared, and not energies.
    """
    differences, skipped = {}, {}
    for name, cheap in levels.items():
        if isinstance(cheap, InputError):
            skipped[name] = str(cheap)
            continue
        of_level = [cheap[index] for index in kept]
        if any(
            (c.energy is None and f.energy is not None) or (by_forces and c.forces is None)
            for f, c in zip(chosen, of_level, strict=True)
        ):
            skipped[name] = "lacks labels that the data have"
        else:
            differences[name] = subtract_labels(chosen, of_level)
    return differences, skipped


@dataclass(frozen=True)
class _Squares:
    """Of each measured structure: sums of squares of forces, their numbers, squares of energies per atom."""

    forces: NDArray[np.float64]
    components: NDArray[np.float64]
    energies: NDArray[np.float64]

    @property
    def errors(self) -> Errors:
        forces = math.sqrt(self.forces.sum() / self.components.sum()) if self.components.sum() else None
        energies = math.sqrt(self.energies.mean()) if not np.isnan(self.energies).any() else None
        return Errors(forces, energies)


@dataclass(frozen=True)
class _Pair:
    """Of a training and of one that is shorter."""

    short: _Squares
    long: _Squares


def _trained(experiment: Experiment, run: Path) -> Potential:
    """The potential of a whole training; one that was stopped says nothing.

    Raises:
        KeyboardInterrupt: when a signal ended it.
    """
    from pimlip_zoo.training.checkpoint import load_potential

    if train(experiment, run).signal is not None:
        raise KeyboardInterrupt
    return load_potential(run)


class _Clock:
    """Says what begins, and how long it is until the last training is over.

    Args:
        told: is told.
        lengths: steps of the trainings that there will be.
    """

    def __init__(self, told: Callable[[str], None], lengths: Sequence[int]) -> None:
        self.told, self.left = told, list(lengths)
        self.of_each, self.of_step = 0.0, 0.0
        self.started = 0.0

    def begins(self, what: str) -> None:
        seconds = sum(self.of_each + self.of_step * length for length in self.left)
        self.told(f"{what}; about {duration(seconds)} left in all" if seconds else what)
        self.started = time.monotonic()

    def ended(self, run: Path, steps: int) -> None:
        """Take the time of a step, and of what else a training takes, from one that is over."""
        spent = time.monotonic() - self.started
        self.of_step = _seconds_of_step(run)
        self.of_each = max(spent - steps * self.of_step, 0.0)
        if steps in self.left:
            self.left.remove(steps)


def _references(taught: Sequence[Frame], frames: Sequence[Frame]) -> dict[str, float] | str:
    """Energies of atoms by least squares; that compositions do not determine them does not matter to a comparison."""
    if not any(frame.energy is not None for frame in taught):
        return "none"
    species = species_of(frames)
    return dict(zip(species, fit_references(taught, species).energies.tolist(), strict=True))


def _seconds_of_step(run: Path) -> float:
    """From the last two validations of a run; in its first steps much is set up."""
    with (run / "metrics.csv").open(encoding="utf-8", newline="") as stream:
        *_, before, last = [{"seconds": 0, "step": 0}, *csv.DictReader(stream)]
    return (float(last["seconds"]) - float(before["seconds"])) / (int(last["step"]) - int(before["step"]))


def _whole_run(model: str, frames: Sequence[Frame]) -> int:
    """Steps that the default recipe takes for so many structures."""
    facts = RunFacts(
        model=model,
        options=frozenset(),
        direct=False,
        structures=len(frames),
        labels=("energy",) if frames[0].forces is None else ("energy", "forces"),
        passes=1.0,
        atoms=sum(len(frame.numbers) for frame in frames),
    )
    settings = get_recipe(DEFAULT_RECIPE).settings(facts)
    return int(cast("int", settings["trainer.max_steps"]))


def _squares(labels: Sequence[Frame], found: Sequence[Frame]) -> _Squares:
    forces, components, energies = [], [], []
    for a, b in zip(labels, found, strict=True):
        known = a.forces is not None and b.forces is not None
        error = np.asarray(a.forces) - np.asarray(b.forces) if known else np.zeros(0)
        forces.append(float(np.nansum(np.square(error))))
        components.append(float(np.isfinite(error).sum()))
        energy = np.nan if a.energy is None or b.energy is None else (a.energy - b.energy) / len(a.numbers)
        energies.append(energy**2)
    return _Squares(np.array(forces), np.array(components), np.array(energies))


def _leveled(labels: Sequence[Frame], frames: Sequence[Frame], measured: NDArray[np.int64]) -> list[Frame]:
    """The measured structures, their energies without an offset by species that is fitted on all."""
    if any(frame.energy is None for frame in labels):
        return [labels[i] for i in measured]
    species = species_of(frames)
    zero = [replace(frame, energy=0.0) for frame in labels]
    offset = fit_offset(labels, zero, species)
    shift = composition_matrix(frames, species) @ offset.energies
    return [replace(labels[i], energy=float(labels[i].energy or 0.0) - float(shift[i])) for i in measured]


def _batch(frames: Sequence[Frame]) -> int:
    """Five structures of a step, fewer where they are large: a step has some 200 atoms."""
    atoms = float(np.mean([len(frame.numbers) for frame in frames]))
    return min(max(round(_ATOMS_OF_A_STEP / atoms), 1), 5)


def _size(labels: Sequence[Frame]) -> Errors:
    """Root mean squares of labels."""
    zero = [
        replace(
            frame,
            energy=None if frame.energy is None else 0.0,
            forces=None if frame.forces is None else np.zeros_like(frame.forces),
        )
        for frame in labels
    ]
    return _squares(labels, zero).errors


def _finding(
    name: str,
    surface: Errors,
    size: Errors,
    plain: _Pair,
    left: _Pair,
    power: float,
    seed: int,
    *,
    by_forces: bool,
) -> Finding:
    """Judge one level.

    Args:
        name: of it.
        surface: size of the labels.
        size: of their difference to it.
        plain: what trainings on the labels reach.
        left: those on the difference.
        power: how far the ratio is carried on, 0 to 1, in logarithms of the length; 1 is as far as the two trainings
            are apart.
        seed: of the bootstrap.
        by_forces: they are compared, and not energies.
    """
    quantity = "forces" if by_forces else "energies"
    count = len(getattr(plain.long, quantity))
    draws = np.random.default_rng(seed).integers(count, size=(_DRAWS, count))
    everyone = np.arange(count)[None]

    def ratios(of: str, chosen: NDArray[np.int64]) -> NDArray[np.float64]:
        a, b = (getattr(getattr(one, of), quantity)[chosen].sum(axis=1) for one in (plain, left))
        return np.sqrt(np.maximum(b, tiny) / np.maximum(a, tiny))

    def expected_of(chosen: NDArray[np.int64]) -> NDArray[np.float64]:
        later, before = ratios("long", chosen), ratios("short", chosen)
        # A difference whose share grows will go on to; that it will go on to shrink nobody promises.
        return later * np.maximum(later / before, 1.0) ** power

    tiny = np.finfo(np.float64).tiny
    tail = 0.5 * (1.0 - COVERED)
    low, high = (float(q) for q in np.quantile(expected_of(draws), [tail, 1.0 - tail]))
    (ratio,), (early,), (expected,) = (
        ratios("long", everyone).tolist(),
        ratios("short", everyone).tolist(),
        expected_of(everyone).tolist(),
    )
    of_plain, of_left = getattr(plain.long.errors, quantity), getattr(left.long.errors, quantity)
    of_surface, of_size = getattr(surface, quantity), getattr(size, quantity)
    roughness = (of_left / max(of_size, tiny)) / max(of_plain / max(of_surface, tiny), tiny)
    # Of what is closer than labels teach, roughness does not matter.
    counted = 0.0 if of_size <= CLOSE * of_plain else float(roughness)
    if of_size <= SAME * of_surface:
        recipe, reason = None, _ITSELF
    else:
        recipe, reason = _verdict(expected, high, counted, by_forces=by_forces)
    return Finding(
        level=name,
        difference=size,
        learnt=left.long.errors,
        ratio=ratio,
        early=early,
        expected=expected,
        low=low,
        high=high,
        roughness=float(roughness),
        recipe=recipe,
        reason=reason,
    )


def _verdict(ratio: float, high: float, roughness: float, *, by_forces: bool) -> tuple[str | None, str]:
    """What to do at a ratio that is expected of a longer run."""
    if ratio >= 1.0:
        return None, "leaves a difference that longer runs learn no better than the surface itself"
    if high >= HELPS:
        return None, "gains too little to be told from chance"
    if not by_forces:
        return (
            "pretrain",
            f"makes energies {1 / ratio:.2g} times better, and knows forces that energies do not tell",
        )
    better = f"leaves a difference that is learnt {1 / ratio:.2g} times better than the surface"
    if roughness > ROUGH:
        return None, (
            f"leaves a difference that is {roughness:.2g} times rougher than the surface: longer runs on the labels "
            "will overtake it"
        )
    if ratio <= HELPS_MUCH and roughness <= SMOOTH:
        return "pretrain", better
    return "delta", f"{better}: enough for a difference model, not for a standalone one"
