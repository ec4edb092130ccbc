"""The training recipe of runs that start from a trained potential: fewer steps at lower rates, by the labels."""

from __future__ import annotations

from pimlip_zoo.training.recipes import RunFacts, Settings, batch_of_atoms, register_recipe

_FEW = 25
_STEPS_OF_EACH, _SHORTEST, _LONGEST = 40, 500, 20_000


def _batch(facts: RunFacts) -> int:
    """So many structures that a step has about 100 atoms, eight at most."""
    return batch_of_atoms(facts, 100, 8, unknown=4)


def _steps(facts: RunFacts) -> int:
    """Forty for each structure, so that each is seen some 150 times in batches of four."""
    if facts.steps is not None:
        return facts.steps
    return min(max(_STEPS_OF_EACH * facts.structures, _SHORTEST), _LONGEST)


def _rate(facts: RunFacts) -> float:
    """Of fifty structures the higher rate learns energies better; ten are learnt by heart at the lower one."""
    return 1e-3 if facts.structures < _FEW else 3e-3


def _reasons_of_length(facts: RunFacts) -> dict[str, str]:
    size = facts.atoms / max(facts.structures, 1)
    return {
        "trainer.max_steps": f"{_steps(facts):,} steps for {facts.structures:,} structures",
        "data.batch_size": f"batches of {_batch(facts)} structures of {size:.0f} atoms",
    }


def _reasons(facts: RunFacts) -> dict[str, str]:
    return {
        "optimizer.lr": f"rate {_rate(facts):g} for {facts.structures:,} structures",
        **_reasons_of_length(facts),
    }


@register_recipe("finetune", reasons=_reasons)
def _finetune(facts: RunFacts) -> Settings:
    """AdamW at a rate for trained weights, cosine; rate, steps and batches follow the number and size of structures.

    Nothing is frozen: all weights and low-rank updates of rank 8 were equally good for 10 and 50 labels of TiO2, and
    for 50 of silicon all weights were a little better (docs/results/foundation-study.md).
    """
    return {
        "optimizer.name": "adamw",
        "optimizer.lr": _rate(facts),
        "schedule.name": "cosine",
        "schedule.final": 0.01,
        "schedule.warmup_steps": min(30, _steps(facts) // 10),
        "trainer.ema_decay": 0.99,
        "trainer.max_steps": _steps(facts),
        "trainer.valid_every": max(_steps(facts) // 10, 50),
        "data.batch_size": _batch(facts),
    }


_OF_MUON = 0.002
"""At 0.01 a foundation model forgets what it knew (docs/results/foundation-study.md)."""


def _by_adamw(facts: RunFacts) -> bool:
    if facts.optimizer is not None:  # given: then at its own rate
        return facts.optimizer == "adamw"
    return facts.low_rank or facts.structures < _FEW


def _reasons_of_both(facts: RunFacts) -> dict[str, str]:
    return _reasons(facts) if _by_adamw(facts) else _reasons_of_length(facts)


@register_recipe("finetune", version=2, reasons=_reasons_of_both)
def _orthogonal(facts: RunFacts) -> Settings:
    """Muon at a rate for trained weights, cosine; AdamW for few structures; length and batches follow the structures.

    Version 1 with muon where there are 25 structures or more: forces are 4 to 16 % better on silicon, molybdenum,
    germanium and water, and as good on TiO2 (docs/results/foundation-study.md). With fewer it was worse on TiO2.
    Low-rank updates, which muon cannot train, have AdamW as before.
    """
    before = _finetune(facts)
    return before if _by_adamw(facts) else {**before, "optimizer.name": "muon", "optimizer.lr": _OF_MUON}
