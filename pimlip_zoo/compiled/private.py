"""Compiled libraries of the cache, loaded so that nobody can pull them from under the process.

A library is mapped, not read: when its file is shortened later, by a copy over it or a cleaner of disks, the next page
that is touched ends the process by SIGBUS. What is loaded is therefore a copy that has no name any more. It costs a
millisecond and as much memory as the library has.
"""

from __future__ import annotations

import ctypes
import hashlib
import tempfile
import threading
from contextlib import suppress
from pathlib import Path

from pimlip_zoo.errors import InputError
from pimlip_zoo.files import scratch_folder

_loaded: dict[str, ctypes.CDLL] = {}
_lock = threading.Lock()


def load_private(path: Path, expected: str | None) -> ctypes.CDLL:
    """Load a library from a copy of its own; the same content once per process.

    The copy is beside the library, or where temporary files are if no program may run there; a library of which no copy
    can be made is loaded as it is.

    Args:
        path: the library.
        expected: what the SHA-256 of its content begins with.

    Raises:
        InputError: where its content is another one.
        OSError: where the system cannot load it.
    """
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if not expected or not digest.startswith(expected):
        raise InputError(
            "was changed while it was loaded", file=path, hint="start again; it is compiled again"
        )
    with _lock:
        if digest not in _loaded:
            _loaded[digest] = _load(path, content)
        return _loaded[digest]


def _load(path: Path, content: bytes) -> ctypes.CDLL:
    with suppress(InputError, OSError), scratch_folder(path.parent, "load") as folder:
        return _loaded_from(folder / path.name, content)
    with suppress(OSError), tempfile.TemporaryDirectory(prefix="pimlip-zoo-load-") as folder:
        return _loaded_from(Path(folder, path.name), content)
    return ctypes.CDLL(str(path))  # no space, or nothing may be written there


def _loaded_from(copy: Path, content: bytes) -> ctypes.CDLL:
    copy.write_bytes(content)
    return ctypes.CDLL(str(copy))
