"""Whether a training has come to its end: what is measured of its weights before is of no finished potential."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pimlip_zoo.config import TrainerSection, load_config
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
    if not isinstance(done, int) or is_over(content, trainer):
        return None
    return done, trainer.max_steps


def is_over(content: Mapping[str, Any], trainer: TrainerSection, seconds: float | None = None) -> bool:
    """Whether nothing is left to train after a checkpoint.

    Args:
        content: of the checkpoint.
        trainer: the run's options.
        seconds: the time that it has, where that is not all of ``max_time``; None: as the checkpoint says.
    """
    done = content.get("global_step")
    if isinstance(done, int) and done >= trainer.max_steps:
        return True
    states = content.get("callbacks")
    states = states if isinstance(states, dict) else {}
    if trainer.max_time is not None:
        limit = _state(states, "TimeLimit")  # stages before a run have a part of its time
        whole = parse_duration(trainer.max_time).total_seconds()
        if _number(limit, "seconds", 0.0) >= (
            _number(limit, "budget", whole) if seconds is None else seconds
        ):
            return True
    waited = _number(_state(states, "EarlyStopping"), "wait_count", 0.0)
    return trainer.patience is not None and waited >= trainer.patience


def _number(state: Mapping[str, Any], key: str, otherwise: float) -> float:
    value = state.get(key)
    return float(value) if isinstance(value, (int, float)) else otherwise


def _state(states: dict[str, Any], name: str) -> dict[str, Any]:
    """What a callback kept, by the beginning of its key, after which its arguments stand."""
    found = next((state for key, state in states.items() if str(key).partition("{")[0] == name), None)
    return found if isinstance(found, dict) else {}
