"""A training recipe: what fills in the options that a user did not give."""

from __future__ import annotations

from collections.abc import Mapping

from pimlip_zoo.training.recipes import RunFacts, register_recipe


@register_recipe("steady")
def steady(facts: RunFacts) -> Mapping[str, object]:
    """AdamW at a rate that never changes, lower for direct heads."""
    return {
        "optimizer.name": "adamw",
        "optimizer.lr": 0.002 if facts.direct else 0.005,
        "schedule.name": "constant",
        "schedule.warmup_steps": 0,
    }
