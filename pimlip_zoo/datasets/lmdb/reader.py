"""Reading a store: any frame by its number, and the index without opening frames."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pimlip_zoo.datasets.coverage import Coverage
from pimlip_zoo.datasets.frame import Frame
from pimlip_zoo.datasets.lmdb.environment import check_pages, open_readonly
from pimlip_zoo.datasets.lmdb.index import BLOCK, CHECKSUM, ENTRY, count_edges, entries_of
from pimlip_zoo.datasets.lmdb.keys import META, checksum_key, composition_key, frame_key, index_key, load_meta
from pimlip_zoo.datasets.lmdb.record import ENERGY, STRESS, RecordError, decode
from pimlip_zoo.errors import InputError

_ELEMENTS = 119
_VERIFIED = 512
_ROUNDING = 1e-9
_ROUNDED = {"force_square": 1e-12, "force_max": 1e-6}
"""Sums and roots, whose last bits are not the same on every machine."""
_PAIR = np.dtype([("number", "u1"), ("count", "<u4")])


def shard_paths(path: str | Path) -> list[Path]:
    """The LMDB files of a store: the file itself, or those of a folder by name.

    Raises:
        InputError: where there is none.
    """
    path = Path(path)
    if path.is_file():
        return [path]
    if (path / "data.mdb").is_file():
        return [path / "data.mdb"]
    shards = sorted(path.glob("*.lmdb")) if path.is_dir() else []
    if not shards:
        raise InputError("there is no LMDB store", file=path)
    return shards


class FrameStore:
    """The frames of an LMDB file or a folder of shards, numbered through.

    Files are opened when they are first used, once per process, without locks: an object may be handed to
    forked or spawned workers, and read by several of them from a network file system.

    Args:
        path: file or folder.

    Raises:
        InputError: for anything that is no intact store.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._shards = [_Shard(file) for file in shard_paths(path)]
        self._ends = list(accumulate(shard.count for shard in self._shards))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Frame:
        """The frame with a number.

        Raises:
            InputError: for a damaged frame.
            IndexError: for a number that is not there.
        """
        data = self.raw(index)
        try:
            return decode(data)
        except RecordError as error:
            raise InputError(f"is damaged: {error}", file=self.path, frame=int(index)) from error

    def __iter__(self) -> Iterator[Frame]:
        for index in range(len(self)):
            yield self[index]

    def raw(self, index: int) -> bytes:
        """The bytes of a frame, as they stand in the file."""
        index = int(index)
        if index < 0:
            index += len(self)
        if not 0 <= index < self._ends[-1]:
            raise IndexError(f"frame {index} of {len(self)}")
        number = bisect_right(self._ends, index)
        shard = self._shards[number]
        data = shard.get(frame_key(index - self._ends[number] + shard.count))
        if data is None:
            raise InputError("is missing", file=shard.path, frame=index)
        return data

    def raw_many(self, indices: Sequence[int]) -> list[bytes]:
        """The bytes of several frames, as they stand in the file.

        Raises:
            InputError: for a damaged file.
            IndexError: for a number that is not there.
        """
        if len(self._shards) > 1 or not indices or min(indices) < 0 or max(indices) >= len(self):
            return [self.raw(index) for index in indices]
        shard = self._shards[0]
        keys = [frame_key(index) for index in indices]
        found = shard.get_many(keys)
        if not found.keys() >= set(keys):
            return [self.raw(index) for index in indices]
        return [found[key] for key in keys]

    @property
    def meta(self) -> list[dict[str, Any]]:
        """The metadata of each shard."""
        return [shard.meta for shard in self._shards]

    @property
    def index_cutoff(self) -> float:
        """Å, within which the index counts edges."""
        return float(self._shards[0].meta["index_cutoff"])

    @property
    def index(self) -> NDArray[Any]:
        """One entry per frame: see :data:`~pimlip_zoo.datasets.lmdb.index.ENTRY`."""
        return self._tables[0]

    @property
    def compositions(self) -> NDArray[np.int64]:
        """(compositions, 119): atoms of each element; rows are numbered by ``index["composition"]``."""
        return self._tables[1]

    def checksums(self) -> NDArray[np.uint32] | None:
        """(frames,) CRC-32 of each frame as its writer noted it; None in stores of versions that noted none."""
        parts = [shard.load_checksums() for shard in self._shards]
        known = [part for part in parts if part is not None]
        return np.concatenate(known) if len(known) == len(parts) else None

    def coverage(self) -> Coverage:
        """Labels and species, from the index alone."""
        from ase.data import chemical_symbols

        labels = self.index["labels"]
        used = self.compositions.sum(axis=0)
        return Coverage(
            structures=len(self),
            atoms=int(self.index["natoms"].sum(dtype=np.int64)),
            energy=int(np.count_nonzero(labels & ENERGY)),
            forces=int(np.count_nonzero(self.index["force_atoms"])),
            stress=int(np.count_nonzero(labels & STRESS)),
            periodic=int(np.count_nonzero(self.index["periodic"])),
            species=tuple(chemical_symbols[z] for z in np.flatnonzero(used)),
        )

    def verify(self, progress: Callable[[int], None] | None = None) -> int:
        """Read every page and every frame, and compare frames with every number of the index and their checksums.

        Returns:
            How many frames there are.

        Raises:
            InputError: for the first thing that is not as it should be.
        """
        for shard in self._shards:
            check_pages(shard.path)
        index, checksums = self.index, self.checksums()
        for start in range(0, len(self), _VERIFIED):
            stop = min(start + _VERIFIED, len(self))
            self._verify_part(start, index[start:stop])
            found = np.frombuffer(b"".join(self.raw(i)[:4] for i in range(start, stop)), CHECKSUM)
            if checksums is not None and (other := np.flatnonzero(found != checksums[start:stop])).size:
                raise InputError(
                    "is not the frame that was written here", file=self.path, frame=start + int(other[0])
                )
            if progress:
                progress(stop - start)
        return len(self)

    def _verify_part(self, start: int, entries: NDArray[Any]) -> None:
        frames = [self[i] for i in range(start, start + len(entries))]
        expected = entries_of(frames, entries["composition"].tolist(), self.index_cutoff)
        for name in (name for name in ENTRY.names or () if name != "composition"):
            for k in np.flatnonzero(~_same(entries[name], expected[name], _ROUNDED.get(name))).tolist():
                # A distance that is the cutoff but for rounding may have counted on another machine.
                if name != "edges" or not _counts(frames[k], int(entries[name][k]), self.index_cutoff):
                    raise InputError(
                        f"the index does not fit the frame: {name}", file=self.path, frame=start + k
                    )
        table = self.compositions
        for k, frame in enumerate(frames):
            if not np.array_equal(
                np.bincount(frame.numbers, minlength=_ELEMENTS), table[entries["composition"][k]]
            ):
                raise InputError(
                    "the index does not fit the frame: composition", file=self.path, frame=start + k
                )

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"])  # type: ignore[misc]

    @cached_property
    def _tables(self) -> tuple[NDArray[Any], NDArray[np.int64]]:
        entries, rows, offset = [], [], 0
        for shard in self._shards:
            part = shard.load_index()
            table = shard.load_compositions()
            if len(part) and int(part["composition"].max()) >= len(table):
                raise InputError("its index names a composition that is not there", file=shard.path)
            wrong = np.flatnonzero(part["natoms"] != table.sum(axis=1)[part["composition"]])
            if len(wrong):
                raise InputError(
                    "its index is damaged: the composition has another number of atoms",
                    file=shard.path,
                    frame=int(wrong[0]),
                )
            part["composition"] += offset
            entries.append(part)
            rows.append(table)
            offset += len(table)
        index = np.concatenate(entries)
        unique, renumbered = np.unique(np.concatenate(rows), axis=0, return_inverse=True)
        if len(index):
            index["composition"] = renumbered.reshape(-1)[index["composition"]]
        return index, unique


def _same(a: NDArray[Any], b: NDArray[Any], tolerance: float | None) -> NDArray[np.bool_]:
    """Where two columns of an index agree: to the last bit, or within a relative tolerance; NaN is NaN."""
    if tolerance is None:
        return (a == b) | ((a != a) & (b != b))  # noqa: PLR0124
    return np.isclose(a, b, rtol=tolerance, atol=0, equal_nan=True)


def _counts(frame: Frame, edges: int, cutoff: float) -> bool:
    """Whether so many edges are within the cutoff, give or take those that are as long but for rounding."""
    return count_edges(frame, cutoff - _ROUNDING) <= edges <= count_edges(frame, cutoff + _ROUNDING)


class _Shard:
    """One LMDB file of a store."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._environment = open_readonly(path)
        self.get, self.get_many = self._environment.get, self._environment.get_many
        self.meta = load_meta(self.get(META), file=path)
        self.count = int(self.meta["count"])
        if self.count * ENTRY.itemsize > path.stat().st_size:
            raise InputError(
                f"claims {self.count} frames, and has {path.stat().st_size} bytes",
                file=path,
                hint="copy it again, or convert the data again",
            )

    def load_index(self) -> NDArray[Any]:
        return self._blocks(index_key, ENTRY, "index")

    def load_checksums(self) -> NDArray[np.uint32] | None:
        if self.count and self.get(checksum_key(0)) is None:
            return None
        return self._blocks(checksum_key, CHECKSUM, "checksums")

    def _blocks(self, key: Callable[[int], bytes], kind: np.dtype[Any], name: str) -> NDArray[Any]:
        blocks = []
        for number in range(-(-self.count // BLOCK)):
            raw = self.get(key(number)) or b""
            expected = min(BLOCK, self.count - number * BLOCK) * kind.itemsize
            if len(raw) != expected:
                raise InputError(f"block {number} of its {name} is missing or damaged", file=self.path)
            blocks.append(np.frombuffer(raw, kind))
        return np.concatenate(blocks) if blocks else np.zeros(0, kind)

    def load_compositions(self) -> NDArray[np.int64]:
        count = int(self.meta["compositions"])
        if count > self.count:
            raise InputError(f"has {count} compositions of {self.count} frames", file=self.path)
        table = np.zeros((count, _ELEMENTS), dtype=np.int64)
        for number in range(count):
            raw = self.get(composition_key(number)) or b""
            if len(raw) % _PAIR.itemsize or not raw:
                raise InputError(f"composition {number} is missing or damaged", file=self.path)
            pairs = np.frombuffer(raw, _PAIR)
            if not 1 <= pairs["number"].min() <= pairs["number"].max() < _ELEMENTS:
                raise InputError(f"composition {number} has an unknown element", file=self.path)
            table[number, pairs["number"]] = pairs["count"]
        return table
