"""Writing a store: frames in transactions, a temporary name until all is there."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pimlip_zoo.datasets.electrons import stated_at_all
from pimlip_zoo.datasets.frame import Frame
from pimlip_zoo.datasets.indices import whole_numbers
from pimlip_zoo.datasets.lmdb.environment import Header, pad_to_header
from pimlip_zoo.datasets.lmdb.index import BLOCK, CHECKSUM, ENTRY, entries_of
from pimlip_zoo.datasets.lmdb.keys import (
    INDEX_CUTOFF,
    META,
    checksum_key,
    composition_key,
    frame_key,
    index_key,
    load_meta,
    new_meta,
)
from pimlip_zoo.datasets.lmdb.record import decode, encode_all
from pimlip_zoo.errors import InputError

if TYPE_CHECKING:
    from typing_extensions import Self

_FIRST_MAP = 16 << 20
_EMPTY = 2 << 12
"""Bytes of a file in which LMDB has written nothing but its two headers, or not even these."""
_COMMIT_FRAMES = 4096
_COMMIT_BYTES = 32 << 20
_LITTLE_ROOM = 1 << 16
"""Bytes: a disk with less is full."""


def partial_path(path: Path) -> Path:
    """The name that a store has while it is written."""
    return path.with_name(path.name + ".partial")


class StoreWriter:
    """Appends frames to one LMDB file, which gets its name when :meth:`finish` is called.

    Frames, their index entries and ``progress`` are committed together: after a kill the partial file
    is as it was at the last commit, and ``resume=True`` goes on from there.

    Args:
        path: the file to be made.
        meta: what else the metadata say: level of theory, source, licence.
        float32: positions and forces in single precision.
        resume: go on with a partial file if there is one; otherwise it is thrown away.
        durable: let the disk confirm each commit, so that also a loss of power loses nothing committed.

    Raises:
        InputError: for a place that cannot be written.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        meta: dict[str, Any] | None = None,
        float32: bool = False,
        resume: bool = False,
        durable: bool = True,
    ) -> None:
        self.path = Path(path)
        self._partial = partial_path(self.path)
        self._claim = -1
        self._float32 = float32
        self._durable = durable
        self._rows: list[tuple[bytes, bytes]] = []
        self._entries: list[tuple[object, ...]] = []
        self._waiting: list[Frame] = []
        self._new_compositions: list[bytes] = []
        self._bytes = 0
        self._count = 0
        self._charged = False
        self._meta: dict[str, Any] = {}
        self._compositions: dict[bytes, int] = {}
        self._by_numbers: dict[bytes, int] = {}
        self._tail: NDArray[Any] = np.zeros(0, ENTRY)
        self._checksums: NDArray[np.uint32] | None = np.zeros(0, CHECKSUM)
        self._open(resume=resume)
        self._load(new_meta(precision="float32" if float32 else "float64", **(meta or {})))

    def __len__(self) -> int:
        return self._count + len(self._rows) + len(self._waiting)

    @property
    def progress(self) -> Any:
        """What :meth:`commit` was last given; None in a new store."""
        return self._meta.get("progress")

    def append(self, frame: Frame) -> None:
        """Add a frame."""
        self._waiting.append(frame)
        self._bytes += frame.positions.nbytes + (0 if frame.forces is None else frame.forces.nbytes)

    def commit(self, progress: Any = None) -> None:
        """Make everything up to here permanent, together with a note of how far the work is."""
        if progress is not None:
            self._meta["progress"] = progress
        self._lay_out()
        self._meta["charged"] = bool(self._meta.get("charged")) or self._charged
        first = self._count
        self._meta["count"] = first + len(self._rows)
        self._meta["compositions"] = len(self._compositions)
        known = len(self._compositions) - len(self._new_compositions)
        puts = [(composition_key(known + k), pairs) for k, pairs in enumerate(self._new_compositions)]
        puts += self._index_blocks(first)
        puts.append((META, json.dumps(self._meta, ensure_ascii=False).encode()))
        self._write(puts, self._rows)
        self._count += len(self._rows)
        self._rows, self._entries, self._new_compositions, self._bytes = [], [], [], 0

    def finish(self, **meta: Any) -> Path:
        """Commit, close, and give the file its name.

        Args:
            meta: the last changes of the metadata.
        """
        self._meta.pop("progress", None)
        self._meta.update(meta)
        self.commit()
        self._environment.sync(True)
        self.close()
        pad_to_header(self._partial)
        self._partial.replace(self.path)
        return self.path

    def abandon(self) -> None:
        """Close and remove the partial file."""
        self.close()
        self._partial.unlink(missing_ok=True)

    def close(self) -> None:
        """Close and leave the partial file for a later run."""
        self._environment.close()
        if self._claim >= 0:
            os.close(self._claim)
            self._claim = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.abandon()
            return
        try:
            self.finish()
        except BaseException:
            self.abandon()
            raise

    def _lay_out(self) -> None:
        """Make the bytes and index entries of the frames that have none yet: many at once is faster."""
        frames, self._waiting = self._waiting, []
        first = len(self)
        compositions = [self._composition(frame.numbers, first + k) for k, frame in enumerate(frames)]
        self._charged = self._charged or any(stated_at_all(frame.info) for frame in frames)
        records = encode_all(frames, float32=self._float32)
        self._rows += [(frame_key(first + k), record) for k, record in enumerate(records)]
        if self._float32:  # the index is that of the numbers that are kept
            frames = [decode(record) for record in records]
        self._entries += entries_of(frames, compositions, INDEX_CUTOFF).tolist()

    @property
    def full(self) -> bool:
        """Whether enough has gathered for a commit."""
        return len(self) - self._count >= _COMMIT_FRAMES or self._bytes >= _COMMIT_BYTES

    def _composition(self, numbers: NDArray[np.int64], index: int) -> int:
        """The number of a frame's composition; a record has a byte for an element, and would cut others to it."""
        key = numbers.tobytes()
        known = self._by_numbers.get(key)
        if known is None:
            numbers = whole_numbers(
                numbers, "atomic number", least=1, count=119, file=self.path, frame=index, key="species"
            )
            known = self._composition_of_counts(np.bincount(numbers, minlength=119))
            if len(self._by_numbers) < 1 << 16:
                self._by_numbers[key] = known
        return known

    def _composition_of_counts(self, counts: NDArray[np.int64]) -> int:
        elements = np.flatnonzero(counts)
        pairs = np.empty(len(elements), dtype=[("number", "u1"), ("count", "<u4")])
        pairs["number"], pairs["count"] = elements, counts[elements]
        key = pairs.tobytes()
        number = self._compositions.get(key)
        if number is None:
            number = self._compositions[key] = len(self._compositions)
            self._new_compositions.append(key)
        return number

    def _index_blocks(self, first: int) -> list[tuple[bytes, bytes]]:
        """The blocks of the index and of checksums that change; the last one may be filled up."""
        blocks, self._tail = _blocks(np.array(self._entries, dtype=ENTRY), self._tail, first, index_key)
        if self._checksums is not None:
            new = np.frombuffer(b"".join(record[:4] for _, record in self._rows), CHECKSUM)
            more, self._checksums = _blocks(new, self._checksums, first, checksum_key)
            blocks += more
        return blocks

    def _write(self, puts: list[tuple[bytes, bytes]], rows: list[tuple[bytes, bytes]]) -> None:
        import lmdb

        while True:
            try:
                with self._environment.begin(write=True) as transaction:
                    for key, value in puts:
                        transaction.put(key, value)
                    cursor = transaction.cursor()
                    cursor.putmulti(rows, append=True)
            except lmdb.MapFullError:
                self._environment.set_mapsize(2 * self._environment.info()["map_size"])
            except lmdb.Error as error:
                raise self._cannot_write(error) from error
            else:
                return

    def _open(self, *, resume: bool) -> None:
        import lmdb

        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._claim = _claim(self._partial)
            size = self._partial.stat().st_size
            if not resume or size < _EMPTY:
                os.truncate(self._claim, 0)
                size = 0
            else:
                Header(self._partial, may_be_short=True)
            self._environment = lmdb.open(
                str(self._partial),
                subdir=False,
                map_size=max(_FIRST_MAP, 2 * size),
                lock=False,
                sync=self._durable,
                metasync=False,
                readahead=False,
            )
        except InputError:
            raise
        except (OSError, lmdb.Error) as error:
            raise self._cannot_write(error) from error

    def _load(self, fresh: dict[str, Any]) -> None:
        """Where a partial file stands, or the start of a new one."""
        with self._environment.begin() as transaction:
            raw = transaction.get(META)
            self._meta = load_meta(raw, file=self._partial) if raw else fresh
            self._count = int(self._meta["count"])
            self._compositions = {
                transaction.get(composition_key(number)) or b"": number
                for number in range(self._meta["compositions"])
            }
            tail = transaction.get(index_key(self._count // BLOCK)) if self._count % BLOCK else b""
            self._tail = np.frombuffer(tail or b"", ENTRY)
            raw = transaction.get(checksum_key((self._count - 1) // BLOCK)) if self._count else b""
            if raw is None:  # begun by a version that kept none
                self._checksums = None
            elif self._count % BLOCK:
                self._checksums = np.frombuffer(raw, CHECKSUM)

    def _cannot_write(self, error: Exception) -> InputError:
        text = getattr(error, "strerror", None) or str(error)
        with suppress(OSError):  # LMDB calls the last page that half fits an input/output error
            if "Input/output" in text and shutil.disk_usage(self.path.parent).free < _LITTLE_ROOM:
                text = "no space left on device"
        hint = None
        if "space" in text.lower():
            hint = "make room and run the same command again"
        elif "Input/output" in text:
            hint = "a quota, a limit of the size of files, or a damaged disk"
        return InputError(f"cannot be written: {text}", file=self.path, hint=hint)


def _blocks(
    new: NDArray[Any], tail: NDArray[Any], first: int, key: Callable[[int], bytes]
) -> tuple[list[tuple[bytes, bytes]], NDArray[Any]]:
    """The blocks that change, and what the last of them holds unless it is full.

    Args:
        new: entries of new frames.
        tail: those of the block before that was not full.
        first: number of the first new frame.
        key: of a block.
    """
    number, begun = divmod(first, BLOCK)
    joined = np.concatenate([tail[:begun], new])
    blocks = [
        (key(number + k), joined[k * BLOCK : (k + 1) * BLOCK].tobytes())
        for k in range(-(-len(joined) // BLOCK))
    ]
    return blocks, joined[len(joined) // BLOCK * BLOCK :]


def _claim(path: Path) -> int:
    """Open a partial file so that no other process writes to it, even one that outlived its parent.

    Raises:
        InputError: where another process has it.
        OSError: where it cannot be made, or is a link: what that leads to is somebody else's.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:  # not on this system: nothing guards against a second writer
        pass
    except BlockingIOError as error:
        os.close(descriptor)
        raise InputError("is being written by another process", file=path) from error
    except OSError:  # a file system without locks
        pass
    return descriptor


def write_store(
    path: str | Path, frames: Iterable[Frame], *, meta: dict[str, Any] | None = None, float32: bool = False
) -> Path:
    """Write frames to one LMDB file.

    Raises:
        InputError: for a place that cannot be written.
    """
    with StoreWriter(path, meta=meta, float32=float32) as writer:
        for frame in frames:
            writer.append(frame)
            if writer.full:
                writer.commit()
    return Path(path)
