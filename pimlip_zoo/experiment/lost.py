"""What is said when a process that a training needs is gone: killed for memory, by a queue, by hand."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from pimlip_zoo.errors import InputError, reason_of

try:
    import resource
except ImportError:  # not on this system
    resource = None  # type: ignore[assignment]

_PLACE = re.compile(r"\[?/\S*\.cc:\d+\]?\s*")
"""Where in the sources of gloo."""
_FILES = ("Too many open files", "received 0 items of ancdata")


_OPEN_FILES, _PER_WORKER = 32, 8
"""That a training needs of the system, and each process of its loader beside them; measured, and some more."""


def check_open_files(workers: int) -> None:
    """Refuse to begin where the system lets a process open too few files.

    Later it is too late to say so: processes of the loader that cannot open a file cannot report it either, and wait.

    Args:
        workers: processes of the loader.

    Raises:
        InputError: naming the limit, and what it has to be.
    """
    if resource is None:
        return
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = _OPEN_FILES + _PER_WORKER * workers
    if limit != resource.RLIM_INFINITY and limit < needed:
        raise InputError(
            f"the system allows {limit} open files, and a training with {workers} processes that load data needs "
            f"{needed}",
            hint=f"raise `ulimit -n`{', or lower data.num_workers' if workers else ''}",
        )


@contextmanager
def lost_processes(folder: Path | None) -> Iterator[None]:
    """Turn the errors that torch raises for a lost process into one line that says how to go on.

    Args:
        folder: of the run, as far as it is known.

    Raises:
        InputError: for a loader's worker or a rank that is gone, or too few open files for the workers.
    """
    try:
        yield
    except (RuntimeError, OSError) as error:
        what = _what_was_lost(error)
        if what is None:
            raise
        message, hint = what
        reason = _PLACE.sub("", reason_of(error)).partition(". This is")[0]
        raise InputError(f"{message}: {reason}", file=folder, hint=hint) from error


def _what_was_lost(error: Exception) -> tuple[str, str] | None:
    said = str(error)
    if any(text in said for text in _FILES):
        return "there are too few open files for the loader", "raise `ulimit -n`, or lower data.num_workers"
    if "DataLoader worker" in said:
        return (
            "a process of the loader was killed (out of memory?)",
            "lower data.num_workers or data.cache_mb, and go on with --resume",
        )
    if (
        isinstance(error, torch.distributed.DistError)
        or "gloo" in said
        or "Connection closed by peer" in said
    ):
        return "another process of the training is gone", "look at what it said last, and go on with --resume"
    return None
