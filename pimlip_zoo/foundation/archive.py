"""The zip archives that ``torch.save`` writes, read by their bytes.

Two readers of one archive may see different things: a second directory behind the first, entries that overlap, offsets
that one of them corrects. So only archives are read in which nothing is left to interpretation, as ``torch.save`` makes
them: one directory at the end, entries side by side from the first byte to it, nothing compressed.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pimlip_zoo.errors import InputError
from pimlip_zoo.files import regular_file

_LOCAL, _CENTRAL = struct.Struct("<4s5H3I2H"), struct.Struct("<4s6H3I5H2I")
_END, _END64, _LOCATOR64 = struct.Struct("<4s4H2IH"), struct.Struct("<4sQ2H2I4Q"), struct.Struct("<4sIQI")
_DESCRIPTOR = 0x0008
_UTF8 = 0x0800
_LONGEST_DESCRIPTOR = 24


@dataclass(frozen=True)
class _Entry:
    start: int
    size: int
    checksum: int


class TorchArchive:
    """What ``torch.save`` stored: one pickle, and the bytes of its tensors.

    Args:
        path: the file.
        pickles: names of pickles of which it has to hold one; a package of ``torch.package``, which is laid out alike,
            has another one than that of ``torch.save``.

    Raises:
        InputError: when there is no such file, or it is anything but such an archive.
    """

    def __init__(self, path: str | Path, *, pickles: Sequence[str] = ("data.pkl",)) -> None:
        self.path = Path(path)
        self._content = memoryview(self._read())
        try:
            self._entries = self._read_directory()
        except (struct.error, UnicodeDecodeError) as error:
            raise self._refusal("its directory is damaged") from error
        roots = {name.partition("/")[0] for name in self._entries}
        self._root = roots.pop() if len(roots) == 1 else ""
        found = [name for name in pickles if name in self]
        if len(found) != 1:
            raise self._refusal(f"it does not hold one {' or '.join(pickles)}")
        (self.pickle,) = found
        """Which of the pickles it holds."""
        if "byteorder" in self and bytes(self.read("byteorder")) != b"little":
            raise self._refusal("its numbers are not in little-endian order")

    def __contains__(self, name: str) -> bool:
        return f"{self._root}/{name}" in self._entries

    def read(self, name: str) -> memoryview:
        """The bytes of one entry.

        Raises:
            InputError: when there is none, or its checksum is not that of its bytes.
        """
        entry = self._entries.get(f"{self._root}/{name}")
        if entry is None:
            raise InputError(f"has no entry {name}, which its pickle refers to", file=self.path)
        content = self._content[entry.start : entry.start + entry.size]
        if zlib.crc32(content) != entry.checksum:
            raise InputError(f"is damaged: the checksum of {name} does not fit", file=self.path)
        return content

    def _read(self) -> bytes:
        with regular_file(self.path).open("rb") as file:
            first = file.read(4)
            file.seek(max(0, os.fstat(file.fileno()).st_size - _END.size))
            last = file.read(4)
            if first != b"PK\x03\x04" or last != b"PK\x05\x06":
                raise self._refusal("it is no zip archive, or not a whole one")
            file.seek(0)
            return file.read()

    def _read_directory(self) -> dict[str, _Entry]:
        count, begin, end = self._find_directory()
        entries: dict[str, _Entry] = {}
        place, free = begin, 0
        for _ in range(count):
            (signature, _, _, flags, method, _, _, checksum, packed, size, *lengths, _, _, _, local) = (
                _CENTRAL.unpack_from(self._content, place)
            )
            name_length, extra, comment = lengths
            raw = bytes(self._content[place + _CENTRAL.size :][:name_length])
            place += _CENTRAL.size + name_length + extra + comment
            if signature != b"PK\x01\x02" or place > end:
                raise self._refusal("its directory is damaged")
            name = raw.decode()
            if name.partition("/")[2].startswith(("constants.pkl", "code/")):
                raise InputError(
                    "a TorchScript file is a program, and has no options to read",
                    file=self.path,
                    hint="give the file that torch.save wrote, not the compiled one",
                )
            if method != 0 or packed != size or flags & ~(_DESCRIPTOR | _UTF8):
                raise self._refusal(f"its entry {name[:60]!r} is compressed or encrypted")
            if name in entries:
                raise self._refusal(f"it has two entries {name[:60]!r}")
            start = self._data_start(local, raw, (flags, checksum, size))
            gap = local - free
            if gap < 0 or gap > _LONGEST_DESCRIPTOR or start + size > begin:
                raise self._refusal("its entries overlap, or leave room between them")
            entries[name], free = _Entry(start, size, checksum), start + size
        if place != end or not 0 <= begin - free <= _LONGEST_DESCRIPTOR:
            raise self._refusal("there is more in it than its directory lists")
        return entries

    def _find_directory(self) -> tuple[int, int, int]:
        """How many entries it has, and where it begins and ends."""
        total = len(self._content)
        signature, *disks, here, count, size, begin, comment = _END.unpack_from(
            self._content, total - _END.size
        )
        if signature != b"PK\x05\x06" or comment or any(disks) or here != count:
            raise self._refusal("it does not end with its directory")
        end = total - _END.size
        if bytes(self._content[max(0, end - _LOCATOR64.size) :][:4]) == b"PK\x06\x07":
            end -= _LOCATOR64.size + _END64.size
            locator = _LOCATOR64.unpack_from(self._content, end + _END64.size)
            signature, length, _, _, *disks, here, count64, size64, begin64 = _END64.unpack_from(
                self._content, max(end, 0)
            )
            same = all(
                short in (long, marker)
                for short, long, marker in (
                    (count, count64, 0xFFFF),
                    (size, size64, 0xFFFFFFFF),
                    (begin, begin64, 0xFFFFFFFF),
                )
            )
            fits = signature == b"PK\x06\x06" and length == _END64.size - 12 and here == count64
            if not (same and fits and not any(disks) and locator[1:] == (0, end, 1)):
                raise self._refusal("it has two directories that differ")
            count, size, begin = count64, size64, begin64
        if begin + size != end:
            raise self._refusal("its directory is not where the file says")
        return count, begin, end

    def _data_start(self, local: int, name: bytes, expected: tuple[int, int, int]) -> int:
        """Where an entry's bytes begin; what it says about itself has to be what the directory says."""
        signature, _, flags, method, _, _, checksum, packed, size, name_length, extra = _LOCAL.unpack_from(
            self._content, local
        )
        start = int(local + _LOCAL.size + name_length)
        later = flags & _DESCRIPTOR and (checksum, packed, size) == (0, 0, 0)
        if (
            signature != b"PK\x03\x04"
            or method != 0
            or bytes(self._content[local + _LOCAL.size : start]) != name
            or flags != expected[0]
            or not (later or ((checksum, size) == expected[1:] and packed == size))
        ):
            raise self._refusal(f"its entry {name[:60]!r} and its directory differ")
        return start + int(extra)

    def _refusal(self, reason: str) -> InputError:
        return InputError(
            f"not a file that torch.save wrote: {reason}", file=self.path, hint="is it complete, and a model?"
        )
