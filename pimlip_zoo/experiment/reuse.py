"""Stages that were trained before: the same training is not done twice, whichever run asks for it.

A stage on the cheap level knows little of the run that it is part of, and is often the longest. What is kept, in the
cache of weak labels, is the folder of a finished stage. It is found by a hash of everything that the training depends
on, as it is and not as it is called: first weights, samples, options, versions. So what is taken is what would have
been trained.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

import torch

from pimlip_zoo import __version__
from pimlip_zoo.datasets.dataset import Samples
from pimlip_zoo.errors import InputError
from pimlip_zoo.experiment.prepare import Experiment
from pimlip_zoo.files import scratch_folder
from pimlip_zoo.graph import Batch
from pimlip_zoo.training.checkpoint import read_checkpoint
from pimlip_zoo.weak_labels.pool import cache_folder

log = logging.getLogger("pimlip_zoo")

_ELSEWHERE = {
    "data": ("train", "valid", "test", "cache_mb", "num_workers"),
    "trainer": ("loggers", "tensorboard"),
    "recipe": ("filled",),
}
"""Options that say where something is or what is written beside: the samples themselves are in the hash."""


def stage_key(experiment: Experiment) -> str:
    """Hexadecimal digits that stand for a training and its result.

    Args:
        experiment: the stage as it is about to begin.
    """
    config = experiment.config.model_dump(mode="json")
    for section, names in _ELSEWHERE.items():
        for name in names:
            config.get(section, {}).pop(name, None)
    config.pop("finetune", None)  # the weights and parameters that it left are below
    known = {
        "config": config,
        "labels": experiment.labels,
        "species": experiment.potential.species,
        "frozen": [name for name, p in experiment.potential.named_parameters() if not p.requires_grad],
        "learning rates": experiment.config.finetune.learning_rates,
        "baseline": experiment.baseline,
        "versions": [__version__, *(version(name) for name in ("torch", "e3nn"))],
    }
    digest = sha256(json.dumps(known, sort_keys=True, default=str).encode())
    for name, value in experiment.potential.state_dict().items():
        digest.update(name.encode())
        if isinstance(value, torch.Tensor):
            digest.update(_bytes(value))
        else:
            digest.update(repr(value).encode())
    for samples in (experiment.train, experiment.valid):
        digest.update(b"samples")
        for sample in _each(samples):
            for value in (*sample.graph, *sample.labels):
                digest.update(_bytes(value) if isinstance(value, torch.Tensor) else repr(value).encode())
    return digest.hexdigest()


def take_stage(key: str, folder: Path, cache: Path | None = None) -> bool:
    """Bring the folder of a stage from the cache; one that is damaged there is removed, and trained again.

    Args:
        key: from :func:`stage_key`.
        folder: that of the stage; not there yet, or without a checkpoint.
        cache: folder of the cache; None: that of weak labels.

    Returns:
        Whether it was there.

    Raises:
        InputError: when it cannot be written.
    """
    kept = _place(key, cache)
    if not (kept / "checkpoints" / "last.ckpt").exists() or _is_damaged(kept):
        return False
    folder.parent.mkdir(parents=True, exist_ok=True)
    with scratch_folder(folder.parent, folder.name) as scratch:
        shutil.copytree(kept, scratch / "stage")
        shutil.rmtree(folder, ignore_errors=True)
        (scratch / "stage").rename(folder)
    log.info("%s: trained before, taken from %s", folder.name, kept)
    return True


def keep_stage(key: str, folder: Path, cache: Path | None = None) -> None:
    """Put the folder of a finished stage into the cache.

    Args:
        key: from :func:`stage_key`, before the stage began.
        folder: that of the stage.
        cache: folder of the cache; None: that of weak labels.

    Raises:
        InputError: when it cannot be written.
    """
    kept = _place(key, cache)
    kept.parent.mkdir(parents=True, exist_ok=True)
    with scratch_folder(kept.parent, kept.name) as scratch:
        copy = scratch / "stage"
        (copy / "checkpoints").mkdir(parents=True)
        for name in ("config.yaml", "metrics.csv", "checkpoints/best.ckpt", "checkpoints/last.ckpt"):
            if (folder / name).exists():
                shutil.copy2(folder / name, copy / name)
        with suppress(OSError):  # another run has finished the same one meanwhile
            copy.rename(kept)


def _is_damaged(kept: Path) -> bool:
    """Whether weights that are kept cannot be read any more; they are removed, and that is said."""
    try:
        for name in ("best", "last"):
            if (path := kept / "checkpoints" / f"{name}.ckpt").exists():
                read_checkpoint(path)
    except InputError as error:
        log.warning("%s; it is removed, and the stage is trained again", error)
        shutil.rmtree(kept, ignore_errors=True)
        return True
    return False


def _place(key: str, cache: Path | None) -> Path:
    return (cache or cache_folder()) / "stages" / key[:20]


def _each(samples: Samples | Sequence[Batch]) -> Iterator[Batch]:
    for index in range(len(samples)):
        yield samples[index]


def _bytes(value: torch.Tensor) -> bytes:
    return value.detach().cpu().contiguous().numpy().tobytes()
