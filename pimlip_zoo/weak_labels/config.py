"""The options of weak labels: which recipe, which calculator, which structures."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from pydantic import ConfigDict, model_validator

from pimlip_zoo.errors import InputError, did_you_mean
from pimlip_zoo.section import Section, parse_options
from pimlip_zoo.weak_labels.pool import PoolOptions
from pimlip_zoo.weak_labels.recipe import RECIPES, Recipe, RecipeOptions

log = logging.getLogger("pimlip_zoo")

KEY = "weak.labels"


class WeakLabelsConfig(Section):
    """Energies and forces from cheap physics; a recipe has further options of its own, which stand beside these."""

    model_config = ConfigDict(extra="allow", validate_default=True, use_attribute_docstrings=True)

    method: str = "pretrain"
    """The recipe: how they are used. docs/guide/weak-supervision.md says when which helps."""
    calculator: str = "gfn2"
    """A registered calculator, with options as in ``gfn2?accuracy=0.1``; ``run:RUN``; or ``MODULE:FACTORY``, a function
    that is imported and called, and returns an ASE calculator."""
    pool: PoolOptions = PoolOptions()
    """How the structures are sampled that are labelled."""
    cache: str | None = None
    """Folder of labelled pools, found again by hash; None: ``$PIMLIP_ZOO_CACHE`` or the user's cache."""

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, values: Any) -> Any:
        """Read the options of the recipe, and fill in those that were not given."""
        if not isinstance(values, Mapping) or not isinstance(values.get("method", ""), str):
            return values
        info = RECIPES.get(values.get("method", cls.model_fields["method"].default), key=f"{KEY}.method")
        own = {key: value for key, value in values.items() if key in cls.model_fields}
        further = {key: value for key, value in values.items() if key not in cls.model_fields}
        for key in [key for key in further if key not in info.options.model_fields]:
            _leave_out(key, further.pop(key), info.name, [*cls.model_fields, *info.options.model_fields])
        return own | parse_options(info.options, further, KEY).model_dump()

    @model_validator(mode="after")
    def _can_work(self) -> WeakLabelsConfig:
        recipe = self.recipe()
        recipe.check(self.pool)
        default = type(self).model_fields["calculator"].default
        if self.calculator != default and self.calculator not in recipe.calculators(self.calculator):
            raise InputError(
                f"the recipe {self.method} does not ask {self.calculator}",
                key=f"{KEY}.calculator",
                hint="name it in weak.levels",
            )
        return self

    def recipe(self) -> Recipe[RecipeOptions]:
        """The recipe with its options."""
        info = RECIPES.get(self.method, key=f"{KEY}.method")
        return info.make(parse_options(info.options, self.model_extra or {}, KEY))


def _leave_out(key: str, value: Any, method: str, known: list[str]) -> None:
    """Earlier versions wrote the options of all recipes; those of another one never had an effect.

    Raises:
        InputError: when no recipe has the option, with the nearest one.
    """
    owners = {
        name: info.options.model_fields[key]
        for name, info in RECIPES.all().items()
        if key in info.options.model_fields
    }
    if not owners:
        raise InputError("there is no such option", key=f"{KEY}.{key}", hint=did_you_mean(key, known))
    if all(value != field.get_default(call_default_factory=True) for field in owners.values()):
        log.warning("%s.%s is an option of %s, not of %s: ignored", KEY, key, ", ".join(owners), method)
