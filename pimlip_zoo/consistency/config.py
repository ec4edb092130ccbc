"""The options of weak supervision, and the presets that stand for them by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

from pimlip_zoo.consistency.displacements import DISPLACEMENTS, DisplacementOptions
from pimlip_zoo.consistency.older_options import LEFT, LEFT_SCHEDULES, OLD_ITERATIONS, without_left
from pimlip_zoo.consistency.residuals import RESIDUALS
from pimlip_zoo.consistency.surface import Detach
from pimlip_zoo.errors import InputError, did_you_mean
from pimlip_zoo.registry import BASELINE
from pimlip_zoo.section import Section, parse_options
from pimlip_zoo.weak_labels.config import WeakLabelsConfig


class ScheduleConfig(Section):
    """How a weight changes; see :mod:`pimlip_zoo.consistency.schedules`."""

    @model_validator(mode="before")
    @classmethod
    def _read_older_versions(cls, values: Any) -> Any:
        return without_left(values, LEFT_SCHEDULES, "weak.terms.NAME.schedule")

    name: Literal["constant", "warm_up", "decay"] = "constant"
    """What the weight is multiplied by over the run; docs/guide/consistency-losses.md has the formulae."""
    start: int = Field(default=0, ge=0)
    """Step at which the warm-up or the decay begins."""
    steps: PositiveInt = 1000
    """Length of the warm-up or the decay."""
    last: float = Field(default=0.0, ge=0, le=1)
    """Factor after a decay."""


class TermConfig(Section):
    """One weak loss."""

    weight: float = Field(default=0.1, ge=0)
    """Factor in the total loss; 0: off."""
    unit: Literal["lambda", "per_atom", "total"] = "lambda"
    """What the weight multiplies. lambda: ``(R / (N ε))²``, an error of force along the displacement,
    relative to the weight of the force loss, so that ``weight = C ε²`` for a ``C (R/N)²``. per_atom:
    ``(R/N)²``. total: ``R²``, the paper's. Terms that are no energies (curl) take
    the weight as it is."""
    detach: Detach = "none"
    """The side that gets no gradient."""
    schedule: ScheduleConfig = ScheduleConfig()
    heads: Literal["all", "direct"] = "all"
    """direct: left out where forces are the gradient of the energy."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Of the residual, where it has any; `pimlip-zoo models --weak` lists them."""


class PerturbationConfig(Section):
    """How atoms are displaced; a distribution has further options of its own, which stand beside these."""

    model_config = ConfigDict(extra="allow", validate_default=True)

    name: str = "uniform"
    """See :data:`pimlip_zoo.consistency.displacements.DISPLACEMENTS`."""
    amplitude: PositiveFloat = 0.05
    """Å: half an edge of the cube, a standard deviation by component, or a root mean square by atom."""
    species: dict[str, float] | None = None
    """Factor by chemical symbol; others: 1."""
    local_radius: PositiveFloat | None = None
    """Å: displace only what is this close to a random atom."""

    @model_validator(mode="before")
    @classmethod
    def _read_older_versions(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and values.get("iterations") == OLD_ITERATIONS:
            # Earlier versions wrote this for every distribution; it is the default of those that have it.
            return {key: value for key, value in values.items() if key != "iterations"}
        return values

    @model_validator(mode="after")
    def _options_exist(self) -> PerturbationConfig:
        self.options()
        return self

    def options(self) -> DisplacementOptions:
        """Of the distribution.

        Raises:
            InputError: for a name or an option that does not exist.
        """
        kind = DISPLACEMENTS.get(self.name, key="weak.perturbation.name")
        given = {"amplitude": self.amplitude, **(self.model_extra or {})}
        return parse_options(kind.options, given, "weak.perturbation")


class WeakConfig(Section):
    """Weak supervision of a run; nothing by default."""

    preset: str | None = None
    """A named set of losses and weak labels; `pimlip-zoo models --weak` lists them."""
    terms: dict[str, TermConfig] = Field(default_factory=dict)
    """By the names of residuals."""
    perturbation: PerturbationConfig = PerturbationConfig()
    strain: float = Field(default=0.01, gt=0, lt=0.2)
    """Largest component of random strains."""
    teacher: Literal["none", "ema"] = "none"
    """Who gives the target side of the residuals, without gradient."""
    teacher_decay: float = Field(default=0.99, gt=0, lt=1)
    """Of the averaged weights that the teacher has, by optimiser step."""
    fraction: float = Field(default=1.0, gt=0, le=1)
    """Share of a batch's structures, drawn anew each step, that the weak losses look at."""
    unlabelled: str | None = None
    """DATA: structures that need no label. Weak losses look at them, and the sampling of weak labels starts from
    them, too."""
    unlabelled_batch_size: PositiveInt = 5
    """Of them, per step."""
    labels: WeakLabelsConfig | None = None

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and isinstance(values.get("preset"), str):
            values = merge_tables(weak_preset(values["preset"]), values)
        return without_left(_with_levels(values), LEFT, "weak")

    @model_validator(mode="after")
    def _terms_exist(self) -> WeakConfig:
        for name, term in self.terms.items():
            key = f"weak.terms.{name}"
            residual = RESIDUALS.get(name, key=key)
            residual.bound(term.options)
            if self.teacher == "ema" and residual.refuses_teacher:
                raise InputError(
                    f"{name} has no target side that a teacher could take",
                    key="weak.teacher",
                    hint="set weak.teacher=none, or leave the term out",
                )
        return self

    @model_validator(mode="after")
    def _given_structures_are_given(self) -> WeakConfig:
        labels = self.labels
        if labels is None or not labels.recipe().samples or not labels.pool.sampled.given:
            return self
        if self.unlabelled is None:
            raise InputError(
                "there are no unlabelled structures",
                key="weak.labels.pool.method",
                hint="add --unlabelled DATA",
            )
        return self

    @property
    def active(self) -> dict[str, TermConfig]:
        """Terms with a weight above zero."""
        return {name: term for name, term in self.terms.items() if term.weight > 0}


def _with_levels(values: Any) -> Any:
    """The table with ``levels`` where it belongs: it is short for the recipe of that name."""
    if not isinstance(values, Mapping) or "levels" not in values:
        return values
    others = {key: value for key, value in values.items() if key != "levels"}
    labels = values.get("labels") or {}
    if not isinstance(labels, Mapping):
        return values
    if labels.get("method", "levels") != "levels":
        raise InputError(
            f"levels are a recipe of their own, and {labels['method']} is another",
            key="weak.levels",
            hint="leave out weak.levels, or --weak and weak.labels.method",
        )
    return {**others, "labels": {**labels, "method": "levels", "levels": values["levels"]}}


PRESETS: dict[str, tuple[str, dict[str, Any]]] = {
    "piwsl": (
        "the paper's form and numbers: PITC first order, PISC triangle (direct heads only)",
        {
            "terms": {
                "pitc_first_order": {"weight": 1.2, "unit": "total"},
                "pisc_triangle": {"weight": 0.01, "unit": "total", "heads": "direct"},
            },
            "perturbation": {"name": "uniform", "amplitude": 0.05},
        },
    ),
    "direct-consistent": (
        "direct heads: central PITC teaches the energies what the forces know",
        {
            "terms": {"pitc_central": {"weight": 1.0, "detach": "forces"}},
            "perturbation": {"name": "uniform", "amplitude": 0.05},
        },
    ),
    "pretrain": (
        "train on structures labelled by a cheap calculator first",
        {"labels": {"method": "pretrain"}},
    ),
    "gfn2": (
        "pretrain with GFN2-xTB, for molecules",
        {"labels": {"method": "pretrain", "calculator": "gfn2"}},
    ),
    "direct-gfn2": (
        "direct heads of molecules: gfn2, then direct-consistent",
        {
            "labels": {"method": "pretrain", "calculator": "gfn2"},
            "terms": {"pitc_central": {"weight": 1.0, "detach": "forces"}},
            "perturbation": {"name": "uniform", "amplitude": 0.05},
        },
    ),
    "delta": (
        "learn the difference to a cheap calculator, which then runs at inference, too",
        {"labels": {"method": "delta"}},
    ),
    "distill": (
        "a difference model labels sampled structures for a student that needs no cheap calculator",
        {"labels": {"method": "distill", "pool": {"structures": 3000}}},
    ),
    "foundation-distill": (
        "fine-tune a foundation model on the labels; it samples and labels a pool for a small student",
        {"labels": {"method": "foundation_distill", "pool": {"structures": 1000}}},
    ),
    "shared-head": (
        "baseline: train on both levels together, two readouts on the same features",
        {"labels": {"method": "shared_head"}},
    ),
    "taylor": (
        "baseline: labels extrapolated to displaced copies (needs force labels)",
        {
            "terms": {"taylor_augmentation": {"weight": 1.0, "unit": "per_atom"}},
            "perturbation": {"name": "uniform", "amplitude": 0.02},
        },
    ),
}
"""Name -> (what it is, options)."""


_PRESETS_LEFT = dict.fromkeys(("second-head", "noisy-nodes", "denoising"), BASELINE)


def weak_preset(name: str) -> dict[str, Any]:
    """The options of a preset, a fresh copy.

    Raises:
        InputError: for an unknown name.
    """
    if name not in PRESETS:
        hint = _PRESETS_LEFT.get(name) or did_you_mean(name, PRESETS)
        raise InputError(f"no weak preset is called {name!r}", key="weak.preset", hint=hint)
    return merge_tables({}, PRESETS[name][1])


def merge_tables(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Nested tables, the changes winning value by value."""
    result = dict(base)
    for key, value in changes.items():
        old = result.get(key)
        if isinstance(value, Mapping):
            result[key] = merge_tables(old if isinstance(old, Mapping) else {}, value)
        else:
            result[key] = value
    return result
