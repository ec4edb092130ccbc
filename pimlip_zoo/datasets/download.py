"""Fetching a file with pooch: resumed after an interruption, checked before it gets its name."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from pimlip_zoo.errors import InputError, reason_of
from pimlip_zoo.files import content_hash

_LENGTHS = {"md5": 32, "sha1": 40, "sha256": 64, "sha512": 128}


def parse_checksum(text: str) -> tuple[str, str]:
    """``sha256:...`` taken apart.

    >>> parse_checksum("md5:d41d8cd98f00b204e9800998ecf8427e")[0]
    'md5'
    """
    algorithm, _, digest = text.strip().lower().partition(":")
    if _LENGTHS.get(algorithm) != len(digest) or not re.fullmatch(r"[0-9a-f]+", digest):
        raise InputError(f"{text!r} is no checksum", key="checksum", hint="write sha256:... or md5:...")
    return algorithm, digest


def check_installed() -> None:
    """Refuse to fetch anything where pooch is missing.

    Raises:
        InputError: saying what to install.
    """
    try:
        import pooch  # noqa: F401
    except ImportError as error:
        raise InputError("pooch is not installed", hint="pip install 'pimlip-zoo[download]'") from error


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
        InputError: for an address that does not answer with the file, a wrong checksum, a target that is there or
            cannot be written, or where pooch is missing.
    """
    check_installed()
    from pooch import file_hash
    from requests import RequestException

    if not address.startswith(("http://", "https://")):
        raise InputError(f"{address!r} is no http address", key="address")
    expected = parse_checksum(checksum) if checksum else None
    if target.exists():
        raise InputError("is there already", file=target, hint="remove it, or name another file")
    part = target.with_name(target.name + ".part")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        _fetch(address, part, progress)
    except RequestException as error:
        raise InputError(
            f"cannot be fetched: {reason_of(error)}",
            file=address,
            hint="run again: it goes on where it stopped",
        ) from error
    if expected is not None and (found := file_hash(str(part), expected[0])) != expected[1]:
        part.unlink()
        raise InputError(
            f"the {expected[0]} is {found}, expected {expected[1]}: the file was thrown away",
            file=address,
            key="checksum",
            hint="a changed or damaged file; try again or ask its authors",
        )
    part.replace(target)
    return content_hash(target)


def _fetch(address: str, part: Path, progress: Callable[[int, int | None], None] | None) -> None:
    """Append what is missing to the partial file."""
    from pooch import HTTPDownloader
    from requests import HTTPError

    with part.open("ab") as file:
        transfer = _Transfer(address, file, progress)
        missing = {"Range": f"bytes={transfer.start}-"} if transfer.start else {}
        fetch = HTTPDownloader(
            progressbar=transfer,
            chunk_size=1 << 16,
            headers={"User-Agent": "pimlip-zoo", "Accept-Encoding": "identity", **missing},
            timeout=60.0,
            hooks={"response": transfer.check},
        )
        try:
            fetch(address, file, None)
        except HTTPError as error:
            if error.response.status_code == 416 and transfer.start:
                return  # nothing is missing; the checksum tells
            said = f"the server says {error.response.status_code} {error.response.reason}"
            raise InputError(said, file=address) from error
        file.flush()
        os.fsync(file.fileno())


class _Transfer:
    """Looks at the answer before the content is read, and at the file while it grows, as pooch's bars do."""

    total = 0
    """Bytes of the answer, which pooch sets; 0 while unknown."""

    def __init__(
        self, address: str, file: IO[bytes], progress: Callable[[int, int | None], None] | None
    ) -> None:
        self.address, self.file, self.progress, self.start = address, file, progress, file.tell()

    def check(self, response: Any, *_: object, **__: object) -> None:
        """Whether it is the file, from where it is missing."""
        status, headers = response.status_code, response.headers
        if status == 206 and not headers.get("Content-Range", "").startswith(f"bytes {self.start}-"):
            raise InputError("the server sends another part than was asked for", file=self.address)
        if status == 200:
            self.file.truncate(0)  # the server does not resume
            self.start = 0
        elif 200 <= status < 300 and status != 206:
            raise InputError(f"the server says {status}, which is no file", file=self.address)

    def update(self, _: int) -> None:
        """Another piece is there."""
        if self.progress:
            self.progress(self.file.tell(), self.start + self.total if self.total else None)

    def reset(self) -> None:
        """Nothing is to be undone."""

    close = reset
