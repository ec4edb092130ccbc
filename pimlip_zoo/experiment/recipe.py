"""The recipe of a run: what fills in the options that were not given."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from pimlip_zoo.config import RunConfig
from pimlip_zoo.datasets.frame import Frame
from pimlip_zoo.datasets.statistics import nearest_distance
from pimlip_zoo.datasets.summary import facts_of
from pimlip_zoo.errors import plain_number
from pimlip_zoo.experiment import holdout
from pimlip_zoo.experiment.ranks import from_rank_zero
from pimlip_zoo.training.recipes import RunFacts, get_recipe

log = logging.getLogger("pimlip_zoo")


_OF_THE_RUN = ("trainer.max_steps", "trainer.valid_every", "data.batch_size", "model.preset", "model.cutoff")
"""Options that a stage has from its run, or from its own section, whichever recipe filled them in."""
_LOOKED_AT = 30


def complete(
    config: RunConfig, frames: Sequence[Frame], labels: Sequence[str], valid: Sequence[Frame] = ()
) -> RunConfig:
    """The configuration with every option that was not given taken from its recipe.

    What was given stays. Where another optimiser, schedule or architecture than the recipe's was chosen, nothing of
    that section comes from the recipe: its values belong together. A configuration that is complete stays as it is.

    Args:
        config: of the run.
        frames: training structures.
        labels: that are trained on.
        valid: validation structures.
    """
    recipe = get_recipe(config.recipe.name, config.recipe.version)
    facts = _with_data(config, _facts(config, len(frames), labels), frames, valid)
    settings = dict(recipe.settings(facts))
    if config.finetune.run is not None:  # the architecture is that of the run
        settings = {key: value for key, value in settings.items() if not key.startswith("model.")}
    content = config.model_dump(exclude_unset=True)
    given = {section: dict(value) for section, value in content.items() if isinstance(value, dict)}
    taken, kept = [], []
    for key, value in settings.items():
        section, *path = key.split(".")
        chosen = given.get(section, {}).get("name")
        others = (
            section != "model" and chosen is not None and chosen != settings.get(f"{section}.name", chosen)
        )
        if _has(given, [section, *path]):
            kept.append(key)
        elif not others:
            _put(content, [section, *path], value)
            taken.append(key)
    if taken:
        log.info("recipe %s %d: %s", recipe.name, recipe.version, recipe.summary)
        reasons = {} if recipe.reasons is None else recipe.reasons(facts)
        chosen = [reason for key, reason in reasons.items() if key in taken]
        whole = RunConfig.model_validate(content)
        chosen += [text] if (text := holdout.reason(whole, len(frames), len(valid))) else []
        if chosen:
            log.info("chosen for these data: %s", "; ".join(chosen))
        log.info(
            "each of %s structures is seen %s times",
            f"{facts.structures:,}",
            plain_number(_passes(whole, facts.structures)),
        )
        if config.data.train.startswith("builtin:"):  # whose length is theirs
            kept = [key for key in kept if key != "trainer.max_steps"]
        if kept:
            log.info("given, and not from the recipe: %s", ", ".join(sorted(kept)))
    elif kept and config.recipe.version is None:
        log.warning("recipe %s changes nothing: every option that it has was given", recipe.name)
    filled = sorted(taken) or config.recipe.filled
    content["recipe"] = {"name": recipe.name, "version": recipe.version, "filled": filled}
    trainer = content.setdefault("trainer", {})
    trainer["keep"] = holdout.weights_to_keep(RunConfig.model_validate(content), len(valid))
    # Dumped whole, so that every option counts as given: what a later stage makes of it is not filled in again.
    return RunConfig.model_validate(RunConfig.model_validate(content).model_dump())


def for_stage(config: RunConfig, structures: int, labels: Sequence[str]) -> RunConfig:
    """The configuration of a stage of a run: what came from the recipe is that of the stage's length and structures.

    Args:
        config: complete, of the stage's length.
        structures: that the stage is trained on.
        labels: that it is trained on.
    """
    recipe = get_recipe(config.recipe.name, config.recipe.version)
    facts = _facts(config, structures, labels)
    facts = dataclasses.replace(facts, steps=config.trainer.max_steps, batch=config.data.batch_size)
    settings, content = recipe.settings(facts), config.model_dump()
    for key in config.recipe.filled:
        if key in settings and key not in _OF_THE_RUN:
            _put(content, key.split("."), settings[key])
    return RunConfig.model_validate(content)


def _facts(config: RunConfig, structures: int, labels: Sequence[str]) -> RunFacts:
    model, trainer = config.model.configure(), config.trainer
    chosen = "name" in config.optimizer.model_fields_set and "optimizer.name" not in config.recipe.filled
    return RunFacts(
        model=config.model.name,
        options=frozenset(field.name for field in dataclasses.fields(model)),
        direct=model.force_head == "direct",
        structures=structures,
        labels=tuple(labels),
        passes=_passes(config, structures),
        steps=trainer.max_steps if "max_steps" in trainer.model_fields_set else None,
        batch=config.data.batch_size if "batch_size" in config.data.model_fields_set else None,
        accumulate=trainer.accumulate,
        low_rank=config.finetune.lora is not None,
        optimizer=config.optimizer.name if chosen else None,
    )


def _passes(config: RunConfig, structures: int) -> float:
    steps = config.trainer.max_steps * config.trainer.accumulate
    return steps * config.data.batch_size / max(structures, 1)


def _with_data(
    config: RunConfig, facts: RunFacts, frames: Sequence[Frame], valid: Sequence[Frame]
) -> RunFacts:
    """With the sizes of the structures, and how far atoms are apart in some of them."""
    known = facts_of(frames)
    labels = known.count("energy") + 3 * int(known.force_atoms.sum()) + 6 * known.count("stress")
    places = np.unique(np.linspace(0, max(len(frames) - 1, 0), min(len(frames), _LOOKED_AT)).astype(int))
    given = config.finetune.run is not None or "cutoff" in (config.model.model_extra or {})
    some = [] if given else places.tolist()
    nearest = from_rank_zero(lambda: nearest_distance([frames[place] for place in some]))
    return dataclasses.replace(
        facts, atoms=int(known.natoms.sum()), labels_counted=labels, validation=len(valid), nearest=nearest
    )


def _has(content: dict[str, Any], path: Sequence[str]) -> bool:
    for name in path:
        if not isinstance(content, dict) or name not in content:
            return False
        content = content[name]
    return True


def _put(content: dict[str, Any], path: Sequence[str], value: object) -> None:
    *parents, last = path
    for name in parents:
        content = content.setdefault(name, {})
    content[last] = value
