"""Looking for text in files that may be larger than the memory, compressed as ASE reads them or not."""

from __future__ import annotations

import bz2
import gzip
import lzma
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
"""How files are opened that ASE unpacks by their endings."""
_CHUNK, _OVERLAP = 1 << 22, 1 << 16


def opened(path: str | Path) -> IO[bytes]:
    """The bytes of a file, unpacked where its name ends with ``.gz``, ``.bz2`` or ``.xz``."""
    file: IO[bytes] = OPENERS.get(Path(path).suffix, open)(path, "rb")
    return file


def matches(path: str | Path, pattern: re.Pattern[bytes]) -> Iterator[re.Match[bytes]]:
    """All matches in a file.

    Args:
        path: the file.
        pattern: whose matches are no longer than 64 KiB.
    """
    with opened(path) as file:
        rest = b""
        while part := file.read(_CHUNK):
            text = rest + part
            safe = len(text) - _OVERLAP if len(part) == _CHUNK else len(text)
            done = 0
            for match in pattern.finditer(text):
                if match.start() >= safe:
                    break
                done = match.end()
                yield match
            rest = text[max(safe, done) :] if safe < len(text) else b""
        yield from pattern.finditer(rest)
