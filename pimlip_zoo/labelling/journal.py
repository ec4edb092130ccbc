"""What was computed, line by line, from the moment it is known: nothing is lost, and nothing computed twice."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from pimlip_zoo.errors import InputError
from pimlip_zoo.files import append, regular_file, replacing, write_text
from pimlip_zoo.locks import making, try_lock

_FORMAT, _VERSION = "pimlip-zoo labels", 1
_LONGEST_HEAD = 1 << 20  # bytes
_SUM = "crc32"
"""Of a line without it; lines of versions before have none."""


def journal_path(out: Path) -> Path:
    """The journal of a file of labels."""
    return out.with_name(out.name + ".journal")


def entries_of(path: Path) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The calculator that a journal is of, and its entries by key; a last line that is not whole is none.

    Raises:
        InputError: when there is no such file, or it is damaged.
    """
    with regular_file(path).open("rb") as file:
        begin = file.readline(_LONGEST_HEAD)
        content = begin + file.read() if begin.endswith(b"\n") else b""
    return _parsed(content.rpartition(b"\n")[0], path)


def _parsed(content: bytes, path: Path) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    lines, entries = content.split(b"\n"), dict[str, dict[str, Any]]()
    try:
        head = json.loads(lines[0])
        if head["format"] != _FORMAT or head["version"] != _VERSION:
            raise InputError("is no journal of this version", file=path)  # noqa: TRY301
        calculator = dict(head["calculator"])
        summed = False
        for line in lines[1:]:
            entry = json.loads(line)
            summed |= _SUM in entry  # whoever writes them writes them from then on
            if summed and (said := entry.pop(_SUM, None)) != _sum_of(entry):
                raise ValueError(f"a line has the checksum {said}")  # noqa: TRY301
            key = entry.pop("key")
            if not isinstance(key, str) or not isinstance(entry.get("result", {}), dict):
                raise TypeError("a line has no key, or no result")  # noqa: TRY301
            if "result" not in entry and not isinstance(entry["failure"], str):
                raise TypeError("a failure has no reason")  # noqa: TRY301
            entries[key] = entry
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            "is damaged", file=path, hint="move it away, and everything is computed anew"
        ) from error
    return calculator, entries


def _sum_of(entry: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(entry).encode())


class Journal:
    """Results and failures by the key of a structure, in a file to which lines are added.

    Args:
        path: the file; :func:`opened_journal` makes and locks it.
        calculator: name, version and level, which all results have in common.
    """

    def __init__(self, path: Path, calculator: dict[str, str]) -> None:
        self.path = path
        self.results: dict[str, dict[str, Any]] = {}
        """By key: ``result`` or ``failure``, and ``seconds``."""
        self._head = json.dumps({"format": _FORMAT, "version": _VERSION, "calculator": calculator}) + "\n"
        if path.exists():
            self._read(calculator)
        else:
            append(path, self._head)

    @property
    def empty(self) -> bool:
        """Whether not a single structure has a label."""
        return not any("result" in entry for entry in self.results.values())

    def add(self, key: str, entry: dict[str, Any]) -> None:
        """Write an entry down; a later one of the same key takes its place."""
        line = {"key": key, **entry}
        append(self.path, json.dumps(line | {_SUM: _sum_of(line)}) + "\n")
        self.results[key] = entry

    def _content(self) -> bytes:
        """What stands in the file; nothing where its process was killed before it wrote the head, which is mended."""
        with regular_file(self.path).open("rb") as file:
            begin = file.readline(_LONGEST_HEAD)
            if begin.endswith(b"\n"):
                return begin + file.read()
            rest = file.read(1)
        if rest or not self._head.encode().startswith(
            begin
        ):  # no journal: what else is in it may have no end
            raise InputError(
                "is damaged", file=self.path, hint="move it away, and everything is computed anew"
            )
        with replacing(self.path) as temporary:
            temporary.write_text(self._head, encoding="utf-8")
        return b""

    def _read(self, calculator: dict[str, str]) -> None:
        content = self._content()
        if not content:
            return
        whole, newline, torn = content.rpartition(b"\n")
        if torn:  # a line that was being written when its process was killed
            with replacing(self.path) as temporary:
                temporary.write_bytes(whole + newline)
        head, self.results = _parsed(whole, self.path)
        if head != calculator and self.empty:  # such as a misspelt basis set: there is nothing to mix with
            write_text(self.path, self._head)
            self.results = {}
            return
        for name in {**head, **calculator}:
            if calculator.get(name) != head.get(name):
                raise InputError(
                    f"its labels have {name} {head.get(name)}, given is {calculator.get(name)}",
                    file=self.path,
                    hint="labels of two kinds do not belong in one file: name another with -o",
                )


@contextmanager
def opened_journal(out: Path, calculator: dict[str, str]) -> Iterator[Journal]:
    """The journal of a file of labels, for this process alone.

    Raises:
        InputError: while another process has it, when it is damaged, or when it is of another calculator.
    """
    path = journal_path(out)
    with ExitStack() as held:
        try:
            held.enter_context(making(path.parent))
            lock = try_lock(path.with_name(path.name + ".lock"))
        except OSError as error:
            raise InputError(
                f"cannot be made: {(error.strerror or str(error)).lower()}", file=path
            ) from error
        if lock is None:
            raise InputError("another process is labelling into it", file=out, hint="wait until it is done")
        held.callback(lock.release)
        journal = Journal(path, calculator)
        try:
            yield journal
        finally:
            if not journal.results:
                path.unlink(missing_ok=True)
