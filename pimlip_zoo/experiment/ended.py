"""Whether a training has come to its end: what is measured of its weights before is of no finished potential."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pimlip_zoo.config import load_config
from pimlip_zoo.errors import InputError
from pimlip_zoo.training.checkpoint import read_checkpoint
from pimlip_zoo.written import parse_duration


def steps_missing(run: Path) -> tuple[int, int] | None:
    """The step at which a run stands and its last one, when it has not ended; None: it has, or does not say.

    A run ends at its last step, when its time is over, or when its patience is.

    Args:
        run: its folder.
    """
    last, config = run / "checkpoints" / "last.ckpt", run / "config.yaml"
    if not (last.is_file() and config.is_file()):
        return None
    try:
        trainer, content = load_config(config, complete=True).trainer, read_checkpoint(last)
    except InputError:
        return None
    done = content.get("global_step")
    if not isinstance(done, int) or done >= trainer.max_steps:
        return None
    states = content.get("callbacks")
    states = states if isinstance(states, dict) else {}
    if trainer.max_time is not None:
        limit = _state(states, "TimeLimit")  # stages before a run have a part of its time
        over = limit.get("seconds", 0.0) >= limit.get(
            "budget", parse_duration(trainer.max_time).total_seconds()
        )
        if over:
            return None
    if trainer.patience is not None:
        waited = _state(states, "EarlyStopping").get("wait_count", 0)
        if waited >= trainer.patience:
            return None
    return done, trainer.max_steps


def _state(states: dict[str, Any], name: str) -> dict[str, Any]:
    """What a callback kept, by the beginning of its key, after which its arguments stand."""
    found = next((state for key, state in states.items() if key.partition("{")[0] == name), None)
    return found if isinstance(found, dict) else {}
