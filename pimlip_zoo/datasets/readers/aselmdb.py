"""ASE databases in LMDB (``.aselmdb``), as fairchem's sets come: zlib-compressed JSON rows, no pickle."""

from __future__ import annotations

import json
import logging
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pimlip_zoo.datasets.frame import Frame
from pimlip_zoo.datasets.lmdb.environment import open_readonly
from pimlip_zoo.datasets.readers.file import ALL_FRAMES, Item
from pimlip_zoo.datasets.readers.labels import INITIAL, LabelFinder
from pimlip_zoo.datasets.readers.spec import ReadOptions
from pimlip_zoo.errors import InputError, reason_of

log = logging.getLogger("pimlip_zoo")

_MAX_ROW, _EXPANSION = 1 << 24, 100
_NO_ROWS = (b"nextid", b"deleted_ids", b"metadata")
"""What ASE keeps beside the rows."""
_LEAST_ROW = 16
"""Bytes that an entry of LMDB takes at least."""
_KEPT = {
    *(
        "numbers",
        "positions",
        "cell",
        "pbc",
        "energy",
        "forces",
        "stress",
        "free_energy",
        "key_value_pairs",
        "data",
    ),
    *("unique_id", "ctime", "mtime", "user", "calculator", "calculator_parameters"),
}
"""What a frame has, and what ASE says of the row itself."""
_DTYPES = {"float64", "float32", "int64", "int32", "bool", "int8", "uint8", "int16"}


class AseLmdbFile:
    """Rows in the order of their ids; a folder is read file by file."""

    def __init__(self, path: str, options: ReadOptions) -> None:
        self.path = path
        self.finder = LabelFinder(options, file=path)
        folder = Path(path)
        self._files = sorted(folder.glob("*.aselmdb")) if folder.is_dir() else [folder]
        self._ids = [self._row_ids(file) for file in self._files]

    def count(self) -> int:
        """Rows of all files."""
        return sum(len(ids) for ids in self._ids)

    def read(self, window: range = ALL_FRAMES) -> Iterator[Item]:
        """Rows of the window."""
        offset = 0
        for file, ids in zip(self._files, self._ids, strict=True):
            if offset + len(ids) > window.start and offset < window.stop:
                environment = open_readonly(file, every_page=True)
                for i, row_id in enumerate(ids, start=offset):
                    if i in window:
                        yield i, self._item(environment.get(str(row_id).encode()), i, file)
            offset += len(ids)

    def _item(self, raw: Any, index: int, file: Path) -> Frame | InputError:
        try:
            if raw is None:
                return InputError("the row is missing", file=file, frame=index)
            row = _decode(raw)
            also = [
                key
                for key, value in row.items()
                if key not in _KEPT and key not in INITIAL and value is not None and np.size(value)
            ]
            data = row.get("data") if isinstance(row.get("data"), dict) else {}
            places = [
                ("row", {key: row.get(key) for key in ("energy", "forces", "stress", "free_energy")}),
                ("key_value_pairs", row.get("key_value_pairs") or {}),
                ("data", data),
                ("arrays", {key: row.get(key) for key in INITIAL}),
            ]
            return self.finder.frame(
                np.asarray(row["numbers"]),
                row["positions"],
                row.get("cell"),
                row.get("pbc", False),
                places,
                index=index,
                also=also,
            )
        except InputError as error:
            return error
        except (ValueError, KeyError, TypeError, zlib.error, RecursionError) as error:
            return InputError(f"the row is unreadable: {error}", file=file, frame=index)

    def _row_ids(self, file: Path) -> list[int]:
        environment = open_readonly(file, every_page=True)
        try:
            raw, deleted = environment.get(b"nextid"), environment.get(b"deleted_ids")
            # What the file says of itself may be anything; its size is what it is.
            entries = min(environment.entries(), file.stat().st_size // _LEAST_ROW)
            rows = entries - sum(environment.get(key) is not None for key in _NO_ROWS)
            gone = set(_decode(deleted)) if deleted else set()
            # Without the number of the next row, they are numbered to the end, the deleted ones among them.
            last = int(_decode(raw)) if raw else rows + len(gone) + 1
            hidden = environment.get_many(str(row).encode() for row in (last, *gone))
            if raw and hidden:
                name = min(hidden).decode()
                raise InputError(  # noqa: TRY301
                    f"has a row {name} that it says is not there",
                    file=file,
                    hint="is it what was written last?",
                )
            ids = [i for i in range(1, min(last, entries + len(gone) + 1)) if i not in gone]
            if len(ids) < rows:
                log.warning(
                    "%s: %d of its entries are not read: they are none of the rows 1 to %d",
                    *(file, rows - len(ids), last - 1),
                )
            return ids  # noqa: TRY300
        except InputError:
            raise
        except (ValueError, TypeError, zlib.error) as error:
            raise InputError(f"is no ASE database: {reason_of(error)}", file=file) from error


def _decode(raw: Any) -> Any:
    decompressor = zlib.decompressobj()
    content = bytes(raw)
    most = max(_MAX_ROW, _EXPANSION * len(content))
    text = decompressor.decompress(content, most)
    if decompressor.unconsumed_tail:
        raise ValueError(f"it holds more than {most} bytes in {len(content)}")
    return json.loads(text, object_pairs_hook=_object)


def _object(pairs: list[tuple[str, Any]]) -> Any:
    """Objects of JSON, and arrays as ASE writes them: shape, dtype, flat list."""
    item = dict(pairs)
    if len(item) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"{next(key for key in keys if keys.count(key) > 1)!r} is there twice")
    if "__ndarray__" not in item:
        return item
    shape, dtype, flat = item["__ndarray__"]
    if dtype not in _DTYPES:
        raise ValueError(f"an array of {dtype}")
    given = np.array(flat)
    array = given.astype(dtype)
    if array.dtype.kind in "iub" and not np.array_equal(given, array):
        raise ValueError(f"an array of {dtype} has numbers that are none of these")
    return array.reshape(shape)
