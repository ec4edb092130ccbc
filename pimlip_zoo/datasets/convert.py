"""Conversion to LMDB stores: streaming, in parallel, and resumable after a kill at any moment.

The work is cut into tasks of a fixed number of frames; each makes one shard. A shard's frames, index and
position in the sources are committed in one transaction, so that a second run of the same command goes on
behind the last commit.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from pimlip_zoo.datasets.lmdb import FrameStore, StoreWriter
from pimlip_zoo.datasets.lmdb.writer import partial_path
from pimlip_zoo.datasets.readers import (
    DataSource,
    check_chosen,
    checked,
    files_of,
    open_source,
    parse_spec,
    window_of,
)
from pimlip_zoo.datasets.readers.source import format_by_ending
from pimlip_zoo.errors import InputError, reading
from pimlip_zoo.files import read_text, write_text
from pimlip_zoo.outputs import STORE, check_not_read, check_output

SHARD_FRAMES = 100_000
"""Frames in a shard when nothing else is said."""
_PLAN = "conversion.json"
_START_OF_PLAN = b'{"fingerprint": '
_LONGEST_PLAN = 1 << 28
_REPLACED = "replaced"
"""Where the former store is while the new one gets its name."""
_SHARD = re.compile(r"shard-\d{5,}\.lmdb")
_BEGUN = re.compile(rf"{_SHARD.pattern}(\.partial)?(-lock)?|\.?{re.escape(_PLAN)}.*|{_REPLACED}")
"""What is in the folder of a conversion."""
_LOCK = re.compile(rf"lock\.mdb|{_SHARD.pattern}-lock")
"""What LMDB puts beside a file where another program opens it."""
_LISTED = 1000


@dataclass(frozen=True)
class Conversion:
    """What a conversion did."""

    path: Path
    """The store: a file, or a folder of shards."""
    frames: int
    skipped: int
    """Frames that were left out because they cannot be used."""
    reasons: tuple[str, ...]
    """What was wrong with them, up to a thousand per shard."""
    not_kept: tuple[str, ...] = ()
    """Kinds of what the sources say of the frames and a store has no place for: constraints, velocities, tags, ..."""


@dataclass(frozen=True)
class _Piece:
    """Consecutive frames of one source."""

    source: int
    start: int
    stop: int
    step: int
    hint: tuple[int, int] | None = None
    """A frame and the byte where it starts, for formats that can seek."""


@dataclass(frozen=True)
class _Shard:
    """What became of a task."""

    frames: int
    skipped: int
    reasons: tuple[str, ...]
    not_kept: tuple[str, ...]


@dataclass(frozen=True)
class _Settings:
    spec: str
    float32: bool
    skip_bad: bool
    meta: dict[str, Any] = field(default_factory=dict)


def convert(
    spec: str,
    out: str | Path,
    *,
    workers: int = 1,
    shard_frames: int = SHARD_FRAMES,
    skip_bad: bool = False,
    float32: bool = False,
    overwrite: bool = False,
    restart: bool = False,
    meta: dict[str, Any] | None = None,
    progress: Callable[[int, int | None], None] | None = None,
) -> Conversion:
    """Write the frames of a DATA specification into a store.

    Args:
        spec: the data, see :func:`~pimlip_zoo.datasets.readers.read_frames`.
        out: the store; a file where one shard holds all, otherwise a folder of shards.
        workers: processes.
        shard_frames: frames of a shard; more shards let more workers work.
        skip_bad: leave out frames that cannot be used and list them, rather than stop at the first.
        float32: positions and forces in single precision.
        overwrite: replace a store that is there.
        restart: throw away what an interrupted conversion left.
        meta: goes into the metadata: level of theory, licence, citation.
        progress: called with frames done and frames in total (None while unknown).

    Raises:
        InputError: for data that cannot be read, an output that is there, another conversion's remains, or a
            place that cannot be written.
    """
    out = Path(out)
    if out.exists() and not overwrite:
        raise InputError("is there already", file=out, hint="name another file, or give --overwrite")
    _check_store(out)
    check_not_read(out, files_of(spec), key="--out")
    if format_by_ending(out) not in (None, "lmdb"):
        raise InputError(
            f"a store is LMDB, and {out.suffix} would have it read as something else",
            file=out,
            hint=f"name it {out.with_suffix('.lmdb').name}",
        )
    if shard_frames < 1 or workers < 1:
        raise InputError("must be at least 1", key="shard_frames" if shard_frames < 1 else "workers")
    folder = partial_path(out)
    settings = _Settings(spec, float32, skip_bad, meta or {})
    if folder.is_dir():
        _check_partial(folder)
    if restart:
        shutil.rmtree(folder, ignore_errors=True)
    sources = parse_spec(settings.spec)
    before = [_stamp(source) for source in sources]
    tasks = _plan(folder, settings, shard_frames, sources, before)
    sizes = [sum(len(range(p.start, p.stop, p.step)) for p in task if p.stop < sys.maxsize) for task in tasks]
    total = None if any(piece.stop == sys.maxsize for task in tasks for piece in task) else sum(sizes)
    done = _Tally(total, progress)
    results = _run(folder, settings, tasks, min(workers, len(tasks)), done)
    if [_stamp(source) for source in sources] != before:
        raise InputError(
            "changed while it was converted: a part of the frames may be from before",
            file=spec,
            hint="once it is complete, give the same command with --restart",
        )
    if not any(shard.frames for shard in results):
        shutil.rmtree(folder, ignore_errors=True)
        raise InputError("there is no frame that can be used", file=spec)
    _give_name(folder, out, len(tasks))
    return Conversion(
        out,
        frames=sum(shard.frames for shard in results),
        skipped=sum(shard.skipped for shard in results),
        reasons=tuple(reason for shard in results for reason in shard.reasons),
        not_kept=tuple(sorted({kind for shard in results for kind in shard.not_kept})),
    )


class _Tally:
    """Adds up what the shards report."""

    def __init__(self, total: int | None, progress: Callable[[int, int | None], None] | None) -> None:
        self._done: dict[int, int] = {}
        self._total, self._progress = total, progress

    def set(self, task: int, frames: int) -> None:
        """A task has written so many frames."""
        self._done[task] = frames
        if self._progress:
            self._progress(sum(self._done.values()), self._total)


def _plan(
    folder: Path, settings: _Settings, shard_frames: int, sources: list[DataSource], stamps: list[Any]
) -> list[list[_Piece]]:
    """The tasks, from the plan of an interrupted run if it was for the same data."""
    fingerprint = {
        "spec": settings.spec,
        "float32": settings.float32,
        "skip_bad": settings.skip_bad,
        "shard_frames": shard_frames,
        "meta": settings.meta,
        "sources": stamps,
    }
    plan = folder / _PLAN
    if plan.exists():
        try:
            saved = json.loads(read_text(plan, most=_LONGEST_PLAN))
            if saved["fingerprint"] == fingerprint:
                return [[_Piece(**piece) for piece in task] for task in saved["tasks"]]
        except (ValueError, KeyError, TypeError):
            pass
        raise InputError(
            "holds what another conversion left",
            file=folder,
            hint="remove it, or give --restart",
        )
    tasks = _cut(sources, shard_frames)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot be made: {error.strerror}", file=folder, hint="name a place where you may write"
        ) from error
    content = {"fingerprint": fingerprint, "tasks": [[asdict(p) for p in task] for task in tasks]}
    write_text(plan, json.dumps(content))
    return tasks


def _stamp(source: DataSource) -> list[Any]:
    """What tells whether a source is still the same: name, size, time of change, of a folder those of its files."""
    path = Path(source.path)
    files = sorted(_files_below(path)) if path.is_dir() else [path]
    stamps = [(str(file), status.st_size, status.st_mtime_ns) for file in files if (status := _status(file))]
    digest = hashlib.sha256(json.dumps(stamps).encode()).hexdigest()
    return [repr(source), digest]


def _files_below(folder: Path) -> Iterator[Path]:
    """All files of a folder, also behind links, each folder once: links may go round in circles."""
    seen = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        status = Path(place).stat()
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        yield from (Path(place) / file for file in files)


def _status(file: Path) -> os.stat_result | None:
    return file.stat() if file.exists() else None


def _cut(sources: list[DataSource], shard_frames: int) -> list[list[_Piece]]:
    tasks: list[list[_Piece]] = [[]]
    room = shard_frames
    for number, source in enumerate(sources):
        file = open_source(source)
        window = window_of(source.frames, file)
        if not getattr(file, "counts_cheaply", True):
            tasks[-1].append(_Piece(number, window.start, window.stop, window.step))
            continue
        starts = getattr(file, "starts", None)
        with reading(source.path):
            hints = starts(shard_frames) if starts else None
            count = hints[0] if hints else file.count()
        check_chosen(source, count)
        window = range(window.start, min(window.stop, count), window.step)
        at = 0
        while at < len(window):
            part = window[at : at + room]
            hint = hints[1][part.start // shard_frames] if hints else None
            tasks[-1].append(_Piece(number, part.start, part.stop, part.step, hint))
            at, room = at + len(part), room - len(part)
            if not room:
                tasks.append([])
                room = shard_frames
    tasks = [task for task in tasks if task]
    if not tasks:
        raise InputError("there are no frames", file=",".join(source.path for source in sources))
    return tasks


def _run(
    folder: Path, settings: _Settings, tasks: list[list[_Piece]], workers: int, tally: _Tally
) -> list[_Shard]:
    if workers == 1:
        shards = []
        for number, task in enumerate(tasks):
            shards.append(_make_shard(folder, settings, number, task, partial(tally.set, number)))
        return shards
    import multiprocessing

    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, ProcessPoolExecutor(workers, mp_context=context) as pool:
        reports, stop = manager.Queue(), manager.Event()
        arguments = ((folder, settings, number, task, reports, stop) for number, task in enumerate(tasks))
        jobs = [pool.submit(_work, *each) for each in arguments]
        try:
            pending: set[Future[_Shard]] = set(jobs)
            while pending:
                done, pending = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
                while not reports.empty():
                    tally.set(*reports.get())
                for job in done:
                    job.result()
        except BrokenProcessPool as error:
            raise InputError(
                "a worker was killed (out of memory?)",
                file=settings.spec,
                hint="run the same command again: it goes on where it stopped",
            ) from error
        finally:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
        return [job.result() for job in jobs]


class _StoppedError(Exception):
    """Another shard failed; what this one has committed stays."""


def _work(
    folder: Path, settings: _Settings, number: int, task: list[_Piece], reports: Any, stop: Any
) -> _Shard:
    parent = os.getppid()

    def report(frames: int) -> None:
        if os.getppid() != parent:
            os._exit(1)  # the parent was killed; what is committed stays
        if stop.is_set():
            raise _StoppedError
        reports.put((number, frames))

    return _make_shard(folder, settings, number, task, report)


def _make_shard(
    folder: Path, settings: _Settings, number: int, task: list[_Piece], report: Callable[[int], None]
) -> _Shard:
    path = folder / f"shard-{number:05d}.lmdb"
    if path.exists():
        shard = _done(path)
        report(shard.frames)
        return shard
    return _ShardJob(path, settings, report).run(task)


def _done(path: Path) -> _Shard:
    """What a finished shard says of itself."""
    meta = FrameStore(path).meta[0]
    not_kept = tuple(meta.get("not_kept", ()))
    return _Shard(int(meta["count"]), int(meta["skipped"]), tuple(meta["skipped_list"]), not_kept)


class _ShardJob:
    """The making of one shard; its state is committed with the frames."""

    def __init__(self, path: Path, settings: _Settings, report: Callable[[int], None]) -> None:
        self.settings, self.report = settings, report
        self.sources = parse_spec(settings.spec)
        meta = {**settings.meta, "source": settings.spec, "skipped": 0, "skipped_list": [], "not_kept": []}
        self.writer = StoreWriter(path, meta=meta, float32=settings.float32, resume=True)
        begun: dict[str, Any] = {"piece": 0, "next": None, "skipped": 0, "reasons": [], "not_kept": []}
        self.state = begun | (self.writer.progress or {})

    def run(self, task: list[_Piece]) -> _Shard:
        state = self.state
        try:
            self.report(len(self.writer))
            if self.writer.progress is None and len(self.writer):
                # Killed in finish(): all is committed, only the name is missing. Nothing may be read again.
                self.writer.finish()
                return _done(self.writer.path)
            for number in range(state["piece"], len(task)):
                if number != state["piece"]:
                    state.update(piece=number, next=None)
                self._copy(task[number])
            self.report(len(self.writer))
            kept_out = {"skipped_list": state["reasons"], "not_kept": state["not_kept"]}
            self.writer.finish(skipped=state["skipped"], **kept_out)
        except BaseException:
            self.writer.close()
            raise
        return _Shard(len(self.writer), state["skipped"], tuple(state["reasons"]), tuple(state["not_kept"]))

    def _copy(self, piece: _Piece) -> None:
        source, state, writer = self.sources[piece.source], self.state, self.writer
        file = open_source(source)
        start = piece.start if state["next"] is None else state["next"]
        window = range(start, piece.stop, piece.step)
        items = file.read(window, piece.hint) if piece.hint else file.read(window)  # type: ignore[call-arg]
        for index, item in checked(source, items, window):
            if not isinstance(item, InputError):
                writer.append(item)
            elif self.settings.skip_bad:
                state["skipped"] += 1
                state["reasons"] += [str(item)] if len(state["reasons"]) < _LISTED else []
            else:
                raise item
            state["next"] = index + piece.step
            state["not_kept"] = sorted({*state["not_kept"], *file.finder.not_kept, *file.finder.not_stored})
            if writer.full:
                writer.commit(state)
                self.report(len(writer))


def _give_name(folder: Path, out: Path, shards: int) -> None:
    """The finished store under its own name; what was there before goes when the new one has its place."""
    old = folder / _REPLACED
    if out.exists():
        _remove(old)
        out.replace(old)
    if shards == 1:
        (folder / "shard-00000.lmdb").replace(out)
        shutil.rmtree(folder)
    else:
        folder.replace(out)
        (out / _PLAN).unlink()
        _remove(out / _REPLACED)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _check_store(out: Path) -> None:
    """Refuse to replace a file that is no store, or a folder that holds anything but one."""
    if not out.is_dir():
        check_output(out, STORE, key="--out")
        return
    others = sorted(path.name for path in out.iterdir() if not _is_of_a_store(path))
    if others:
        raise InputError(
            f"is a folder with other things than a store: {', '.join(others[:3])}",
            file=out,
            key="--out",
            hint="name another, or remove it first",
        )


def _is_of_a_store(path: Path) -> bool:
    """A shard; the plan or the former store where a conversion was killed in its last moment."""
    if path.name == _REPLACED:
        _check_store(path)
        return True
    if not path.is_file():
        return False
    if path.name == _PLAN:
        with path.open("rb") as file:
            return file.read(len(_START_OF_PLAN)) == _START_OF_PLAN
    if path.name == "data.mdb" or _SHARD.fullmatch(path.name):
        return STORE[1](path)
    return _LOCK.fullmatch(path.name) is not None


def _check_partial(folder: Path) -> None:
    """Refuse to work in a folder, and to remove it in the end, in which somebody has put things."""
    others = sorted(path.name for path in folder.iterdir() if not _BEGUN.fullmatch(path.name))
    if others:
        raise InputError(
            f"is where the store is made, and holds other things: {', '.join(others[:3])}",
            file=folder,
            hint="move them away, or name another store",
        )
