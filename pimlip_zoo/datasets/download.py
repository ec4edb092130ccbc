"""Fetching a file: resumed after an interruption, checked before it gets its name."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from pimlip_zoo.errors import InputError

__all__ = ["download", "parse_checksum"]

_CHUNK = 1 << 20
_TIMEOUT = 60.0
_LENGTHS = {"md5": 32, "sha1": 40, "sha256": 64, "sha512": 128}


def parse_checksum(text: str) -> tuple[str, str]:
    """``sha256:...`` taken apart.

    >>> parse_checksum("md5:d41d8cd98f00b204e9800998ecf8427e")[0]
    'md5'
    """
    algorithm, _, digest = text.strip().lower().partition(":")
    if _LENGTHS.get(algorithm) != len(digest) or not re.fullmatch(r"[0-9a-f]+", digest):
        raise InputError(f"{text!r} is no checksum", key="checksum", mend="write sha256:... or md5:...")
    return algorithm, digest


def download(
    address: str,
    target: Path,
    *,
    checksum: str | None,
    progress: Callable[[int, int | None], None] | None = None,
) -> str:
    """Fetch a file.

    What an interrupted call has fetched is kept in ``TARGET.part`` and gone on with. The file gets its name only
    when all of it is there and its checksum is right; with a wrong one nothing is left behind.

    Args:
        address: ``http://`` or ``https://``.
        target: the file to be made.
        checksum: ``md5:...`` or ``sha256:...``; None takes what comes.
        progress: called with bytes so far and in total (None while unknown).

    Returns:
        The SHA-256 of the file.

    Raises:
        InputError: for an address that does not answer with the file, a wrong checksum, or a target that is
            there or cannot be written.
    """
    if not address.startswith(("http://", "https://")):
        raise InputError(f"{address!r} is no http address", key="address")
    expected = parse_checksum(checksum) if checksum else None
    if target.exists():
        raise InputError("is there already", file=target, mend="remove it, or name another file")
    part = target.with_name(target.name + ".part")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        _fetch(address, part, progress)
    except HTTPError as error:
        raise InputError(f"the server says {error.code} {error.reason}", file=address) from error
    except (URLError, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", error)
        raise InputError(
            f"cannot be fetched: {reason}", file=address, mend="run again: it goes on where it stopped"
        ) from error
    sha256 = _digest(part, "sha256")
    if expected is not None:
        algorithm, digest = expected
        found = sha256 if algorithm == "sha256" else _digest(part, algorithm)
        if found != digest:
            part.unlink()
            raise InputError(
                f"the {algorithm} is {found}, expected {digest}: the file was thrown away",
                file=address,
                key="checksum",
                mend="a changed or damaged file; try again or ask its authors",
            )
    part.replace(target)
    return sha256


def _fetch(address: str, part: Path, progress: Callable[[int, int | None], None] | None) -> None:
    """Append what is missing to the partial file."""
    done = part.stat().st_size if part.exists() else 0
    request = Request(  # noqa: S310 - the scheme was checked
        address, headers={"User-Agent": "pimlip-zoo", **({"Range": f"bytes={done}-"} if done else {})}
    )
    try:
        response = urlopen(request, timeout=_TIMEOUT)  # noqa: S310
    except HTTPError as error:
        if error.code == 416 and done:
            return  # nothing is missing; the checksum tells
        raise
    with response:
        if response.status not in (200, 206):
            raise InputError(f"the server says {response.status}, which is no file", file=address)
        if response.status == 206:
            if not response.headers.get("Content-Range", "").startswith(f"bytes {done}-"):
                raise InputError("the server sends another part than was asked for", file=address)
        else:
            done = 0  # the server does not resume
        length = response.headers.get("Content-Length")
        total = done + int(length) if length else None
        with part.open("ab" if done else "wb") as file:
            while chunk := response.read(_CHUNK):
                file.write(chunk)
                done += len(chunk)
                if progress:
                    progress(done, total)
            file.flush()
            os.fsync(file.fileno())
    if total is not None and done < total:
        raise ConnectionError(f"the connection ended after {done} of {total} bytes")


def _digest(path: Path, algorithm: str) -> str:
    content = hashlib.new(algorithm)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            content.update(chunk)
    return content.hexdigest()
