"""Long labelling in parts: each is kept as it is done, several processes share them, and none is done twice."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pimlip_zoo.datasets.frame import Frame
from pimlip_zoo.errors import InputError

__all__ = ["Part", "cores", "do_parts", "forget", "told_duration", "work_on"]

log = logging.getLogger("pimlip_zoo")

Part = Mapping[str, Any]
"""What one part is, as JSON takes it; ``number`` and ``count`` (how many frames, about) are among it."""
Do = Callable[[Part, Callable[[int], None]], list[Frame]]
"""Makes the frames of a part, and says how many it has so far."""

_POLLED = 0.2


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
        worker: Python statement by which another process begins; it finds the folder, its number and how many there
            are among its arguments, and calls :func:`work_on`.
    """
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


def work_on(folder: Path, share: int, processes: int, do: Do) -> None:
    """What a worker process does: every part of its share that is not there yet."""
    parts = json.loads((folder / "parts.json").read_text(encoding="utf-8"))
    for part in parts[share::processes]:
        try:
            _made(folder, part, lambda part: do(part, lambda _: None))
        except InputError as error:
            said = {"message": error.message, "frame": error.frame, "key": error.key, "mend": error.mend}
            (folder / f"error-{share}.json").write_text(json.dumps(said), encoding="utf-8")
            raise SystemExit(2) from error


def _file(folder: Path, part: Part) -> Path:
    return folder / f"part-{part['kind']}-{part['number']:05d}.lmdb"


def _made(folder: Path, part: Part, do: Callable[[Part], list[Frame]]) -> list[Frame]:
    """From its file, or done and written there under a temporary name first."""
    from pimlip_zoo.datasets.lmdb import FrameStore, write_store

    file = _file(folder, part)
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        begun = file.with_name(f"{os.getpid()}-{file.name}")
        try:
            made = do(part)
            if not made:
                return []
            write_store(begun, made)
            begun.replace(file)
        finally:
            begun.unlink(missing_ok=True)
            begun.with_name(f"{begun.name}-lock").unlink(missing_ok=True)
    return list(FrameStore(file))


def _share(
    parts: Sequence[Part],
    missing: Sequence[Part],
    folder: Path,
    processes: int,
    worker: str,
    report: Callable[[int], None],
) -> None:
    """Start the workers and wait for them.

    They are processes of their own with a command line of their own: a script that calls this needs no guard.
    """
    for old in folder.glob("error-*.json"):
        old.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "parts.json").write_text(json.dumps(list(missing)), encoding="utf-8")
    places = os.pathsep.join(path for path in sys.path if path)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": places}
    running = []
    try:
        for share in range(processes):
            with (folder / f"worker-{share}.log").open("w") as said:
                command = [sys.executable, "-c", worker, str(folder), str(share), str(processes)]
                running.append(subprocess.Popen(command, stderr=said, stdout=said, env=environment))  # noqa: S603
        while any(process.poll() is None for process in running):
            time.sleep(_POLLED)
            report(sum(part["count"] for part in parts if _file(folder, part).exists()))
    finally:
        for process in running:
            if process.poll() is None:
                process.terminate()
        for process in running:
            process.wait()
    for share, process in enumerate(running):
        if process.returncode == 0:
            continue
        found = folder / f"error-{share}.json"
        if found.exists():
            error = json.loads(found.read_text(encoding="utf-8"))
            raise InputError(error["message"], frame=error["frame"], key=error["key"], mend=error["mend"])
        # What it left is done here, where a failure is seen.
        log.warning("a process that labels ended early: see %s", folder / f"worker-{share}.log")


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def told_duration(seconds: float) -> str:
    """Such as 45 s, 12 min, 3 h."""
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def forget(folder: Path) -> None:
    """Remove the parts of work that is kept as a whole."""
    shutil.rmtree(folder, ignore_errors=True)
