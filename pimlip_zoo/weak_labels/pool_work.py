"""Long labelling in parts: each is kept as it is done, several processes share them, and none is done twice."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pimlip_zoo.datasets.frame import Frame
from pimlip_zoo.errors import InputError
from pimlip_zoo.files import replacing
from pimlip_zoo.processes import Processes, Reply

log = logging.getLogger("pimlip_zoo")

Part = Mapping[str, Any]
"""What one part is, as JSON takes it; ``number`` and ``count`` (how many frames, about) are among it."""
Do = Callable[[Part, Callable[[int], None]], list[Frame]]
"""Makes the frames of a part, and says how many it has so far."""


def do_parts(
    parts: Sequence[Part],
    do: Do,
    report: Callable[[int], None],
    *,
    folder: Path | None = None,
    processes: int = 1,
    worker: str = "",
) -> list[Frame]:
    """The frames of all parts, in their order.

    Args:
        parts: the work.
        do: a part, in this process.
        report: is told how many frames there are.
        folder: where finished parts are kept; None: nowhere, and there is one process.
        processes: how many share the work.
        worker: Python statement by which another process begins: :func:`~pimlip_zoo.processes.serve` with
            :func:`answer_parts` of the folder that it is told.
    """
    report = _rising(report)
    missing = [part for part in parts if folder is None or not _file(folder, part).exists()]
    if folder is not None and len(missing) > 1 and processes > 1 and worker:
        _share(parts, missing, folder, min(processes, len(missing)), worker, report)
    frames: list[Frame] = []
    for part in parts:
        if folder is None:
            made = do(part, lambda count: report(len(frames) + count))  # noqa: B023
        else:
            made = _made(folder, part, lambda part: do(part, lambda count: report(len(frames) + count)))  # noqa: B023
        frames += made
        report(len(frames))
    return frames


def _rising(report: Callable[[int], None]) -> Callable[[int], None]:
    """Tells each number once: what other processes have made is read again, in order."""
    told = -1

    def tell(count: int) -> None:
        nonlocal told
        if count > told:
            told = count
            report(count)

    return tell


def answer_parts(folder: Path, do: Do) -> Reply:
    """How a process that shares the work answers a part: it is in the folder then."""

    def reply(part: Part) -> dict[str, Any]:
        _made(folder, part, lambda part: do(part, lambda _: None))
        return {}

    return reply


def _file(folder: Path, part: Part) -> Path:
    return folder / f"part-{part['kind']}-{part['number']:05d}.lmdb"


def _made(folder: Path, part: Part, do: Callable[[Part], list[Frame]]) -> list[Frame]:
    """From its file, or done and written there."""
    from pimlip_zoo.datasets.lmdb import FrameStore, write_store

    file = _file(folder, part)
    if not file.exists():
        made = do(part)
        if not made:
            return []
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(file) as begun:  # a name of its own: two commands may come to the same part at a time
            write_store(begun, made)
    with made_anew(file):
        return list(FrameStore(file))


@contextmanager
def made_anew(store: Path) -> Iterator[None]:
    """Say of labels that cannot be read any more what helps: they are the work of this program."""
    try:
        yield
    except InputError as error:
        raise error.at(file=store, hint="remove it, and its labels are made anew") from error


def _share(
    parts: Sequence[Part],
    missing: Sequence[Part],
    folder: Path,
    processes: int,
    worker: str,
    report: Callable[[int], None],
) -> None:
    """Have processes make the missing parts; what they leave is done here, where a failure is seen."""
    folder.mkdir(parents=True, exist_ok=True)
    done = sum(part["count"] for part in parts if part not in missing)
    with Processes(worker, {"folder": str(folder)}, count=processes, threads=1) as pool:
        for answer in pool.run(list(enumerate(missing))):
            if answer.failure is not None:
                log.warning("a process that labels: %s", answer.failure)
                continue
            done += missing[answer.index]["count"]
            report(done)


def told_duration(seconds: float) -> str:
    """Such as 45 s, 12 min, 3 h."""
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def forget(folder: Path) -> None:
    """Remove the parts of work that is kept as a whole."""
    shutil.rmtree(folder, ignore_errors=True)
