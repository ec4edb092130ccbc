"""A logger: where losses and errors of a run go, as lines of JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger

from pimlip_zoo.experiment.loggers import register_logger


class JsonLines(Logger):
    """One line for each step that is logged."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.file = file

    @property
    def name(self) -> str:
        """Of the project, which there is none of."""
        return ""

    @property
    def version(self) -> str:
        """Of the run."""
        return self.file.stem

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Losses with their weights and schedules, or errors."""
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **metrics}) + "\n")

    def log_hyperparams(self, params: Mapping[str, Any], *_: Any) -> None:
        """The configuration, which stands in ``config.yaml`` already."""


@register_logger("jsonl")
def jsonl(folder: Path) -> Logger:
    """Lines of JSON in the run folder."""
    return JsonLines(folder / "watched.jsonl")
