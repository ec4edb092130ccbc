"""How many structures are held out for validation, and whether they are enough to choose weights by.

The first measurements are in docs/results/holdout.md. Of few structures each one that is held out costs more in
training than a better choice of weights is worth, and from ten on a choice by one to four of them is on average no
better than the weights of the last step, where the rate has decayed. That a thousand are the most is a judgement.
"""

from __future__ import annotations

from pimlip_zoo.config import DataSection, RunConfig

_ENOUGH = 5
"""Validation structures that weights are chosen by."""


def held_out(structures: int, data: DataSection) -> int:
    """How many of the structures validate: ``valid_fraction`` of them, one at least, ``max_valid`` at most.

    Args:
        structures: that can be held out, two at least.
        data: of the run.
    """
    return min(max(1, round(data.valid_fraction * structures)), structures - 1, data.max_valid)


def weights_to_keep(config: RunConfig, validation: int) -> str:
    """``best`` or ``last``, see ``trainer.keep``.

    The last weights are as good as the best ones only where the rate has decayed by then, and where a run ends when it
    was planned to; and of what is fine-tuned the first steps may be the best ones.

    Args:
        config: of the run.
        validation: structures.
    """
    if config.trainer.keep is not None:
        return config.trainer.keep
    decays = config.schedule.name not in ("constant", "plateau")
    planned = config.trainer.patience is None and config.finetune.run is None
    return "last" if validation < _ENOUGH and decays and planned else "best"


def reason(config: RunConfig, training: int, validation: int) -> str:
    """In a few words how many structures validate, and what for."""
    drawn = config.data.valid is None and "valid_fraction" not in config.data.model_fields_set
    text = f"{validation:,} of {training + validation:,} structures held out" if drawn else ""
    if config.trainer.keep is None and weights_to_keep(config, validation) == "last":
        few = text or f"{validation:,} structures validate"
        return f"{few}, too few to choose weights by: the last ones are kept, and errors on them are rough"
    return text
