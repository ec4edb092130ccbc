"""Opening LMDB files without trusting them.

LMDB maps a file into memory and follows the page numbers in it: a truncated or damaged file can end the
process. Headers are therefore checked before LMDB sees a file, and every page of small files; and a file that somebody
shortens or writes to while it is mapped is noticed before the next look into it.
"""

from __future__ import annotations

import os
import struct
import threading
import weakref
from collections.abc import Callable, Iterable
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeVar
from zlib import crc32

import numpy as np

from pimlip_zoo.errors import InputError
from pimlip_zoo.files import regular_file

_T = TypeVar("_T")

PAGES_CHECKED_ON_OPENING = 64 << 20
"""Bytes; larger files have their pages checked by ``verify`` only."""

_MAGIC, _VERSION = 0xBEEFC0DE, 1
_PAGE_HEADER = 16
_META = struct.Struct("<IIQQ" + 2 * "IHHQQQQQ" + "QQ")
_NODE = struct.Struct("<HHHH")
_BRANCH, _LEAF = 1, 2
_BIG_DATA = 1
_NO_PAGE = 0xFFFFFFFFFFFFFFFF
_MAX_DEPTH = 32
_COMPARED = 256
"""Pages of a large file that are compared where something but its content was changed, a megabyte of most."""
_READ_AT_ONCE = 1 << 22


class Header:
    """The newer of the two headers of an LMDB file.

    Args:
        path: the file.
        may_be_short: it is still being written, and its last pages may not be.

    Raises:
        InputError: for a file that is no LMDB file or that is shorter than its header says.
    """

    def __init__(self, path: Path, *, may_be_short: bool = False) -> None:
        size = regular_file(path).stat().st_size
        with path.open("rb") as file:
            first = file.read(_PAGE_HEADER + _META.size)
            if len(first) < _PAGE_HEADER + _META.size:
                raise InputError("is no LMDB file: it is too short", file=path)
            fields = _META.unpack_from(first, _PAGE_HEADER)
            if fields[0] != _MAGIC or fields[1] != _VERSION:
                raise InputError("is no LMDB file", file=path)
            self.page_size = fields[4]
            if self.page_size not in (1 << k for k in range(9, 17)):
                raise InputError(f"is damaged: pages of {self.page_size} bytes", file=path)
            file.seek(self.page_size)
            second = file.read(_PAGE_HEADER + _META.size)
        candidates = [fields]
        if len(second) == _PAGE_HEADER + _META.size:
            other = _META.unpack_from(second, _PAGE_HEADER)
            if other[0] == _MAGIC and other[1] == _VERSION:
                candidates.append(other)
        newest = max(candidates, key=lambda meta: meta[-1])
        self.free_root, self.main_root, self.last_page = newest[11], newest[19], newest[20]
        if newest[13] != 0 or newest[14] > _MAX_DEPTH:
            raise InputError("is damaged, or an LMDB file of another program", file=path)
        self.pages = size // self.page_size
        for meta in candidates:
            if meta[20] >= self.pages and not may_be_short:
                raise InputError(
                    f"is truncated: {size} bytes, its header needs {(meta[20] + 1) * self.page_size}",
                    file=path,
                    hint="copy it again, or convert the data again",
                )


def pad_to_header(path: Path) -> None:
    """Give a file the length that its header names: LMDB does not write pages that it freed at once.

    After this a shorter file is a truncated one.
    """
    meta = Header(path, may_be_short=True)
    size = (meta.last_page + 1) * meta.page_size
    if path.stat().st_size < size:
        with path.open("r+b") as file:
            file.truncate(size)


def check_pages(path: Path) -> int:
    """Refuse a file in which following the pages of the tree would leave them.

    Returns:
        How many pages of the tree there are.

    Raises:
        InputError: naming the file and the page.
    """
    return _PageWalk(path).run()


class _PageWalk:
    """Follows the pages of both trees of a file: that of free pages and that of the data."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.meta = Header(path)
        shape = (self.meta.pages, self.meta.page_size)
        self.pages = np.memmap(path, dtype=np.uint8, mode="r", shape=shape)
        self.seen = np.zeros(self.meta.pages, dtype=bool)
        self.seen[:2] = True

    def run(self) -> int:
        count = 0
        for root in (self.meta.free_root, self.meta.main_root):
            level = [] if root == _NO_PAGE else [root]
            for _ in range(_MAX_DEPTH):
                count += len(level)
                level = [child for number in level for child in self._page(number)]
            if level:
                raise self._damaged("its tree has no end")
        return count

    def _page(self, number: int) -> list[int]:
        """Check a page; the children of a branch."""
        self._claim(number, 1)
        page = self.pages[number].tobytes()
        flags, lower, upper = struct.unpack_from("<HHH", page, 10)
        if struct.unpack_from("<Q", page)[0] != number or flags not in (_BRANCH, _LEAF):
            raise self._damaged(f"page {number} is not what it should be")
        if not _PAGE_HEADER <= lower <= upper <= len(page) or lower % 2:
            raise self._damaged(f"page {number} has impossible bounds")
        pointers = struct.unpack_from(f"<{(lower - _PAGE_HEADER) // 2}H", page, _PAGE_HEADER)
        if any(at < upper or at > len(page) - _NODE.size for at in pointers):
            raise self._damaged(f"a node of page {number} lies outside it")
        nodes = [(at, *_NODE.unpack_from(page, at)) for at in pointers]
        if flags == _LEAF:
            for at, low, high, kind, key_size in nodes:
                self._value(number, page, at + _NODE.size + key_size, low | high << 16, kind)
            return []
        if len(nodes) < 2 or any(at + _NODE.size + node[3] > len(page) for at, *node in nodes):
            raise self._damaged(f"page {number} is no branch")
        return [low | high << 16 | kind << 32 for _, low, high, kind, _ in nodes]

    def _value(self, number: int, page: bytes, at: int, size: int, kind: int) -> None:
        """Check that a value lies within its page, or within the file where it has pages of its own."""
        if kind not in (0, _BIG_DATA) or at + (8 if kind else size) > len(page):
            raise self._damaged(f"a value of page {number} lies outside it")
        if kind:
            first = struct.unpack_from("<Q", page, at)[0]
            self._claim(first, -(-(size + _PAGE_HEADER) // len(page)))

    def _claim(self, first: int, count: int) -> None:
        """Pages belong to one place of the tree only, and lie within the file."""
        if first + count - 1 > self.meta.last_page or self.seen[first : first + count].any():
            raise self._damaged(f"page {first} is outside the file or used twice")
        self.seen[first : first + count] = True

    def _damaged(self, what: str) -> InputError:
        return InputError(
            f"is damaged: {what}", file=self.path, hint="copy it again, or convert the data again"
        )


class SharedEnvironment:
    """An LMDB file opened for reading, once per process, by all who read it.

    LMDB allows a process one opening of a file, and none to be carried through a fork: the first access in
    a child closes what it inherited and opens the file anew.

    Touching a mapped page that is no longer there ends a process by SIGBUS. So length and times of the file are looked
    at before every read, of the file that was opened, whatever has its name by now. Where those have changed, all that
    was in a small file is compared; a large one was written to if its date is another one, and has some pages compared
    if it was but moved, linked, or given other permissions. A file that is replaced, moved or removed as a whole stays
    what it was for who has it open.
    """

    def __init__(self, path: Path, identity: tuple[int, int]) -> None:
        self._path = path
        self._identity = identity
        self._descriptor = os.open(path, os.O_RDONLY)
        self._forget = weakref.finalize(self, os.close, self._descriptor)
        self._forget.atexit = False
        self._state = _state(self._descriptor)
        self._page_size = Header(path).page_size
        self._content = self._look()
        self._begin()

    def get(self, key: bytes) -> bytes | None:
        """The value of a key.

        Raises:
            InputError: where LMDB finds the file damaged.
        """
        return self._read(lambda transaction: transaction.get(key))

    def get_many(self, keys: Iterable[bytes]) -> dict[bytes, bytes]:
        """The values of those keys that are there; takes a third of the time of one by one.

        Raises:
            InputError: where LMDB finds the file damaged.
        """
        return self._read(lambda transaction: dict(transaction.cursor().getmulti(keys)))

    def entries(self) -> int:
        """How many keys there are.

        Raises:
            InputError: where LMDB finds the file damaged.
        """
        return self._read(lambda transaction: int(transaction.stat()["entries"]))

    def _read(self, look: Callable[[Any], _T]) -> _T:
        """Look at the transaction, which is opened anew in a child process."""
        import lmdb

        self._check_unchanged()
        if self._process != os.getpid():
            self._transaction.abort()
            self._environment.close()
            if _identity(self._path) != self._identity:
                raise InputError("was replaced while it was read", file=self._path)
            self._begin()
        try:
            with self._lock:
                return look(self._transaction)
        except lmdb.Error as error:
            raise InputError(f"is damaged: {error}", file=self._path) from error

    def _check_unchanged(self) -> None:
        state = _state(self._descriptor)
        if state == self._state:
            return
        size, date, _ = self._state
        written = size > PAGES_CHECKED_ON_OPENING and state[:2] != (size, date)
        if state[0] < size or written or self._look() != self._content:
            raise InputError(
                "was changed while it was read",
                file=self._path,
                hint="put another file in its place as a whole (mv, not cp or rsync --inplace; a large one must not "
                "be touched either), and start again",
            )
        # Touched, moved, or longer: LMDB's pages are where they were.
        self._state = (self._state[0], *state[1:])

    def _look(self) -> bytes | int:
        """The checksum of what was in the file when it was opened, or some pages of a large one."""
        size = self._state[0]
        if size > PAGES_CHECKED_ON_OPENING:
            return _some_pages(self._descriptor, self._page_size, size)
        checksum = 0
        for start in range(0, size, _READ_AT_ONCE):
            part = os.pread(self._descriptor, min(_READ_AT_ONCE, size - start), start)
            checksum = crc32(part, checksum)
        return checksum

    def close(self) -> None:
        """Close the file for all who read it in this process."""
        self._transaction.abort()
        self._environment.close()
        self._forget()
        self._process = -1

    def _begin(self) -> None:
        self._environment = _open(self._path)
        self._transaction = self._environment.begin()
        self._process = os.getpid()
        self._lock = threading.Lock()


_OPEN: weakref.WeakValueDictionary[tuple[int, int], SharedEnvironment] = weakref.WeakValueDictionary()


def open_readonly(path: Path, *, every_page: bool = False) -> SharedEnvironment:
    """The LMDB file at a path, after a look at its pages; nothing is locked or written.

    Args:
        path: the file.
        every_page: look at all pages of large files, too: those of other programs, which nobody verifies.

    Raises:
        InputError: for a file that is missing, unreadable, truncated or damaged.
    """
    import lmdb

    try:
        identity = _identity(path)
        shared = _OPEN.get(identity)
        if shared is None:
            if every_page or path.stat().st_size <= PAGES_CHECKED_ON_OPENING:
                check_pages(path)
            else:
                Header(path)
            shared = _OPEN[identity] = SharedEnvironment(path, identity)
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror or error}", file=path) from error
    except lmdb.Error as error:
        raise InputError(f"cannot be opened: {error}", file=path) from error
    return shared


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _state(descriptor: int) -> tuple[int, int, int]:
    """How long a file is, and when it and what is said of it changed; the latter nobody can put back."""
    status = os.fstat(descriptor)
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _some_pages(descriptor: int, page_size: int, size: int) -> bytes:
    """Both headers, which name the trees, and pages from all over the file: two stores may have the same headers."""
    pages = size // page_size
    places = sorted({0, 1, *(place * pages // _COMPARED for place in range(_COMPARED))})
    digest = blake2b(digest_size=16)
    for place in places:
        digest.update(os.pread(descriptor, page_size, place * page_size))
    return digest.digest()


def _open(path: Path) -> Any:
    import lmdb

    return lmdb.open(str(path), subdir=False, readonly=True, lock=False, readahead=False, create=False)
