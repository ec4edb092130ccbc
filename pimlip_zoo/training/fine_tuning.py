"""The training recipe of runs that start from a trained potential: fewer steps at lower rates, by the labels."""

from __future__ import annotations

from pimlip_zoo.training.recipes import RunFacts, Settings, register_recipe

__all__: list[str] = []

_ATOMS_OF_A_STEP, _MOST = 100, 8


def _batch(facts: RunFacts) -> int:
    """So many structures that a step has about 100 atoms, eight at most."""
    if facts.batch is not None:
        return facts.batch
    if not facts.atoms or not facts.structures:
        return 4
    return min(max(round(_ATOMS_OF_A_STEP * facts.structures / facts.atoms), 1), _MOST)


def _steps(facts: RunFacts) -> int:
    if facts.steps is not None:
        return facts.steps
    return min(max(20 * facts.structures, 500), 20_000)


def _reasons(facts: RunFacts) -> dict[str, str]:
    return {
        "trainer.max_steps": f"{_steps(facts):,} steps for {facts.structures:,} structures",
        "data.batch_size": f"batches of {_batch(facts)} for {facts.atoms / max(facts.structures, 1):.0f} atoms each",
    }


@register_recipe("finetune", reasons=_reasons)
def _finetune(facts: RunFacts) -> Settings:
    """AdamW at a rate for trained weights, cosine; steps and batches follow the number and size of structures."""
    return {
        "optimizer.name": "adamw",
        "optimizer.lr": 1e-3,
        "schedule.name": "cosine",
        "schedule.final": 0.01,
        "schedule.warmup_steps": min(30, _steps(facts) // 10),
        "trainer.ema_decay": 0.99,
        "trainer.max_steps": _steps(facts),
        "trainer.valid_every": max(_steps(facts) // 10, 50),
        "data.batch_size": _batch(facts),
    }
