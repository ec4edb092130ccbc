"""Training recipes by name and version: optimiser, schedule, weights of the losses, averaging.

A recipe fills in what the user did not give. Its settings may depend on what the data are. A version never changes:
what is found to be better is a new version, and a run's ``config.yaml`` names the one that it used. Another package
offers one through the entry-point group ``pimlip_zoo.training_recipes``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from pimlip_zoo.errors import InputError, did_you_mean
from pimlip_zoo.registry import Registry, first_line

DEFAULT_RECIPE = "default"

Settings = Mapping[str, object]
"""Values by dotted key, as after ``--set``."""


@dataclass(frozen=True)
class RunFacts:
    """What a recipe may depend on."""

    model: str
    """Name of the architecture."""
    options: frozenset[str]
    """Names of the architecture's options."""
    direct: bool
    """Forces come from a head of their own."""
    structures: int
    """Training structures."""
    labels: tuple[str, ...]
    """Which labels are trained on."""
    passes: float
    """How often a step looks at each of them in the whole run."""
    steps: int | None = None
    """Optimiser steps, where they were given."""
    batch: int | None = None
    """Structures of a step, where they were given."""
    accumulate: int = 1
    """Batches of a step."""
    atoms: int = 0
    """Of all training structures; 0: nobody counted."""
    labels_counted: int = 0
    """Energies, force components and stress components among them."""
    validation: int = 0
    """Validation structures."""
    nearest: float = 0.0
    """Å between nearest neighbours, the median over some structures; 0: nobody looked."""
    low_rank: bool = False
    """Low-rank updates are what is trained (``finetune.lora``): not every optimiser can."""
    optimizer: str | None = None
    """Name of the optimiser, where it was given: a rate belongs to it."""


@dataclass(frozen=True)
class Recipe:
    """One version of a recipe."""

    name: str
    version: int
    summary: str
    """One line: what it is and where it is from."""
    settings: Callable[[RunFacts], Settings]
    reasons: Callable[[RunFacts], Mapping[str, str]] | None = None
    """Why an option has its value, by dotted key, in a few words; None: nothing to say."""


_recipes: dict[tuple[str, int], Recipe] = {}
_elsewhere: Registry[Recipe] = Registry(
    "training recipe", "pimlip_zoo.training_recipes", ("pimlip_zoo.training.fine_tuning",)
)
"""Other packages' are registered when this is asked for all of its own, which are none."""

SettingsOf = Callable[[RunFacts], Settings]
ReasonsOf = Callable[[RunFacts], Mapping[str, str]]


def register_recipe(
    name: str, *, version: int = 1, reasons: ReasonsOf | None = None
) -> Callable[[SettingsOf], SettingsOf]:
    """Decorator of a function from the facts of a run to settings; its docstring's first line is the summary.

    Args:
        name: of the recipe.
        version: a changed recipe has a new one.
        reasons: from the same facts, why options have their values.

    Raises:
        InputError: when another function has that name and version already.
    """

    def register(function: SettingsOf) -> SettingsOf:
        other = _recipes.get((name, version))
        if other is not None and other.settings.__qualname__ != function.__qualname__:
            raise InputError(f"two recipes are called {name!r}, version {version}", hint="rename one of them")
        _recipes[name, version] = Recipe(name, version, first_line(function), function, reasons)
        return function

    return register


def get_recipe(name: str, version: int | None = None) -> Recipe:
    """The recipe of that name; its newest version unless one is given.

    Raises:
        InputError: when there is none, with the nearest known names, or the versions that there are.
    """
    _elsewhere.all()
    versions = {v: recipe for (n, v), recipe in _recipes.items() if n == name}
    if not versions:
        raise InputError(
            f"no recipe is called {name!r}",
            key="recipe.name",
            hint=did_you_mean(name, sorted({n for n, _ in _recipes})),
        )
    if version is not None and version not in versions:
        raise InputError(
            f"recipe {name!r} has no version {version}",
            key="recipe.version",
            hint=f"there is {', '.join(map(str, sorted(versions)))}",
        )
    return versions[max(versions) if version is None else version]


def available_recipes() -> list[Recipe]:
    """The newest version of each."""
    _elsewhere.all()
    return [get_recipe(name) for name in dict.fromkeys(name for name, _ in _recipes)]


@register_recipe(DEFAULT_RECIPE, version=1)
def _adamw(facts: RunFacts) -> Settings:  # noqa: ARG001
    """AdamW at 0.01, cosine, forces, energy per atom and stress 1 : 1 : 100: what runs before 0.2.0 used."""
    return {
        "optimizer.name": "adamw",
        "optimizer.lr": 0.01,
        "schedule.name": "cosine",
        "schedule.final": 0.01,
        "trainer.ema_decay": 0.99,
    }


@register_recipe(DEFAULT_RECIPE, version=2)
def _muon(facts: RunFacts) -> Settings:
    """Muon, its rate lower the more often each structure is seen, decaying linearly to zero.

    With many passes a high rate fits the training structures by heart: of 50 structures in 300 passes a rate of 0.02
    has a third larger errors than 0.005 (docs/results/recipes.md). The root of the passes fits the best rates found
    for 22, 111 and 300 passes.
    """
    return {
        "optimizer.name": "muon",
        "optimizer.lr": _rate(0.05, facts.passes),
        "schedule.name": "linear",
        "schedule.final": 0.0,
        "trainer.ema_decay": 0.99,
    }


_LOWEST, _HIGHEST = 0.002, 0.02
"""Rates of Muon."""


def _rate(constant: float, passes: float) -> float:
    """A constant over the root of the passes, 0.002 to 0.02, in two digits."""
    rate = min(max(constant / math.sqrt(max(passes, 1e-9)), _LOWEST), _HIGHEST)
    return float(f"{rate:.2g}")


# ---- lengths and sizes that follow the data

_MOST, _STEPS_OF_THOUSAND = 10, 20_000
_SHORTEST, _LONGEST = 4_000, 400_000
_MANY_LABELS, _VERY_MANY_LABELS = 2_000_000, 50_000_000
_SHELLS, _SPARSE = 1.75, 2.9


def batch_of_atoms(facts: RunFacts, atoms: int, most: int, unknown: int) -> int:
    """So many structures that a step has about so many atoms, or as many as were given.

    Args:
        facts: of the run.
        atoms: of a step.
        most: structures.
        unknown: structures where nobody counted atoms.
    """
    if facts.batch is not None:
        return facts.batch
    if not facts.atoms or not facts.structures:
        return unknown
    return min(max(round(atoms * facts.structures / facts.atoms), 1), most)


def _batch(facts: RunFacts) -> int:
    """So many structures that a step has about 200 atoms, ten at most."""
    return batch_of_atoms(facts, 200, _MOST, _MOST)


def _steps(facts: RunFacts) -> int:
    """As the root of the number of structures: 20,000 for a thousand."""
    if facts.steps is not None:
        return facts.steps
    steps = _STEPS_OF_THOUSAND * math.sqrt(facts.structures / 1000)
    return int(float(f"{min(max(steps, _SHORTEST), _LONGEST):.2g}"))


def _valid_every(facts: RunFacts) -> int:
    """A fortieth of the run, less often where validation would take a tenth of the time."""
    steps, third = _steps(facts), facts.validation / 3.0  # an evaluation costs a third of a step on it
    often = max(steps // 40, round(10.0 * third / _batch(facts)))
    return min(max(often, 50), 500 if often < 500 else 2_500, max(steps, 1))


def _preset(facts: RunFacts) -> str:
    if facts.labels_counted > _VERY_MANY_LABELS:
        return "large"
    return "medium" if facts.labels_counted > _MANY_LABELS else "small"


def _cutoff(facts: RunFacts) -> float | None:
    """Three shells of neighbours where these are far apart; None: the architecture's own."""
    if facts.nearest < _SPARSE or "cutoff" not in facts.options:
        return None
    return min(round(_SHELLS * facts.nearest, 1), 7.0)


def _reasons(facts: RunFacts) -> dict[str, str]:
    size = facts.atoms / max(facts.structures, 1)
    return {
        "trainer.max_steps": f"{_steps(facts):,} steps for {facts.structures:,} structures",
        "data.batch_size": f"batches of {_batch(facts)} structures of {size:.0f} atoms",
        "model.preset": f"{_preset(facts)} for {facts.labels_counted:,} labels",
        "model.cutoff": f"cutoff {_cutoff(facts)} Å for neighbours {facts.nearest:.1f} Å apart",
        "trainer.valid_every": f"{facts.validation:,} structures validated every {_valid_every(facts)} steps",
    }


@register_recipe(DEFAULT_RECIPE, version=3, reasons=_reasons)
def _following(facts: RunFacts) -> Settings:
    """Muon as in version 2; steps, batches, model size, cutoff and validation follow the number and size of structures.

    What version 2 had for all is what this one has for a thousand small molecules. The rate is that of version 2 for
    the passes that the chosen steps make.
    """
    cutoff = _cutoff(facts)
    return {
        **_muon(replace(facts, passes=_passes(facts))),
        "trainer.max_steps": _steps(facts),
        "trainer.valid_every": _valid_every(facts),
        "data.batch_size": _batch(facts),
        "model.preset": _preset(facts),
        **({} if cutoff is None else {"model.cutoff": cutoff}),
    }


def _passes(facts: RunFacts) -> float:
    """How often the chosen steps look at each structure."""
    return _steps(facts) * facts.accumulate * _batch(facts) / max(facts.structures, 1)


_CONSTANTS = {"nequip": 0.09}
"""Of the rate, by architecture; of others 0.05. With more MACE and Allegro are worse on Cu-Al."""


@register_recipe(DEFAULT_RECIPE, version=4, reasons=_reasons)
def _by_architecture(facts: RunFacts) -> Settings:
    """Muon, its rate by architecture and passes, decaying linearly to zero; lengths and sizes follow the data.

    Version 3, and NequIP with a rate nearly twice as high: its forces are 0 to 9 % better on molecules and Cu-Al, and
    as good on other solids; those of MACE and Allegro would be worse (docs/results/recipes.md).
    """
    constant = _CONSTANTS.get(facts.model, 0.05)
    return {**_following(facts), "optimizer.lr": _rate(constant, _passes(facts))}


@register_recipe(DEFAULT_RECIPE, version=5, reasons=_reasons)
def _equal_outputs(facts: RunFacts) -> Settings:
    """Muon with equal steps of all outputs, its rate by architecture and passes, decaying linearly to zero.

    Version 4 otherwise. Forces are 3 to 8 % better on molecules and TiO2, energies 4 to 28 %, as good on other solids;
    those of NequIP on Cu-Al scatter more (docs/results/recipes.md).
    """
    return {**_by_architecture(facts), "optimizer.equal_outputs": True}


_LIGHTEST = {"nequip": "compact"}
"""Preset where ``small`` would be chosen, by architecture."""


def _preset_of(facts: RunFacts) -> str:
    preset = _preset(facts)
    return _LIGHTEST.get(facts.model, preset) if preset == "small" else preset


def _reasons_of_compact(facts: RunFacts) -> dict[str, str]:
    return {
        **_reasons(facts),
        "model.preset": f"{_preset_of(facts)} for {facts.labels_counted:,} labels",
    }


@register_recipe(DEFAULT_RECIPE, version=6, reasons=_reasons_of_compact)
def _compact(facts: RunFacts) -> Settings:
    """Muon with equal steps of all outputs, its rate by architecture and passes; length and size follow the data.

    Version 5, with the preset ``compact`` for NequIP instead of ``small``: a layer more of half the channels
    (docs/results/recipes.md).
    """
    return {**_equal_outputs(facts), "model.preset": _preset_of(facts)}


@register_recipe(DEFAULT_RECIPE, version=7, reasons=_reasons_of_compact)
def _in_time(facts: RunFacts) -> Settings:
    """Muon with equal steps of all outputs, its rate by architecture and passes; length and size follow the data.

    Version 6, whose rate follows the passes that there is time for, where ``trainer.max_time`` is enough for a part of
    the steps (docs/results/recipes.md).
    """
    return {**_compact(facts), "schedule.shorter_power": 0.5, "schedule.highest_lr": _HIGHEST}


@register_recipe("mace-torch")
def _mace_torch(facts: RunFacts) -> Settings:
    """AMSGrad at 0.01, forces 100 : energy 1, then energy 1,000 : forces 100 at a tenth of the rate, as mace-torch 0.3.

    mace-torch's ``weighted`` loss and stage two (``--swa``) from three quarters of the run; its plateaus of 50 epochs.
    """
    first = {"model.residual_first": True} if "residual_first" in facts.options else {}
    return {
        **first,
        "optimizer.name": "adamw",
        "optimizer.lr": 0.01,
        "optimizer.weight_decay": 5e-7,
        "optimizer.amsgrad": True,
        "schedule.name": "plateau",
        "schedule.warmup_steps": 0,
        "schedule.plateau_factor": 0.8,
        "schedule.plateau_patience": 50,
        "loss.energy_per_atom.weight": 1.0,
        "loss.forces.weight": 100.0,
        "loss.stress.weight": 1.0,
        "loss.late.start": 0.75,
        "loss.late.energy_per_atom": 1000.0,
        "loss.late.forces": 100.0,
        "loss.late.stress": 10.0,
        "loss.late.rate": 0.1,
        "trainer.ema_decay": 0.99,
        "trainer.gradient_clip": 10.0,
        "data.batch_size": 10,
    }


@register_recipe("nequip")
def _nequip(facts: RunFacts) -> Settings:  # noqa: ARG001
    """Adam at 0.01, energy per atom and forces 1 : 1, averaged over 1,000 steps, as nequip's tutorial has it."""
    return {
        "optimizer.name": "adamw",
        "optimizer.lr": 0.01,
        "schedule.name": "plateau",
        "schedule.warmup_steps": 0,
        "schedule.plateau_factor": 0.6,
        "schedule.plateau_patience": 5,
        "schedule.plateau_threshold": 0.2,
        "loss.energy_per_atom.weight": 1.0,
        "loss.forces.weight": 1.0,
        "trainer.ema_decay": 0.999,
        "data.batch_size": 5,
    }
