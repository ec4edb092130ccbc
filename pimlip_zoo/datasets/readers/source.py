"""Which class reads which file."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from pimlip_zoo.datasets.readers.file import ALL_FRAMES, FrameFile
from pimlip_zoo.datasets.readers.spec import DataSource, ReadOptions
from pimlip_zoo.errors import InputError, did_you_mean, no_such_file, reading
from pimlip_zoo.files import regular_file

__all__ = ["check_bounded", "check_chosen", "open_source", "window_of"]


def _builtin(path: str, options: ReadOptions) -> FrameFile:
    from pimlip_zoo.datasets.readers.inside import BuiltinSet

    return BuiltinSet(path, options)


def _store(path: str, options: ReadOptions) -> FrameFile:
    from pimlip_zoo.datasets.readers.inside import StoreFile

    return StoreFile(path, options)


def _extxyz(path: str, options: ReadOptions) -> FrameFile:
    from pimlip_zoo.datasets.readers.extxyz import ExtxyzFile

    return ExtxyzFile(path, options)


def _npz(path: str, options: ReadOptions) -> FrameFile:
    from pimlip_zoo.datasets.readers.npz import NpzFile

    return NpzFile(path, options)


def _hdf5(path: str, options: ReadOptions) -> FrameFile:
    from pimlip_zoo.datasets.readers.hdf5 import Hdf5File

    return Hdf5File(path, options)


def _deepmd(path: str, options: ReadOptions) -> FrameFile:
    from pimlip_zoo.datasets.readers.deepmd import DeepmdFolder

    return DeepmdFolder(path, options)


def _n2p2(path: str, options: ReadOptions) -> FrameFile:
    from pimlip_zoo.datasets.readers.n2p2 import N2p2File

    return N2p2File(path, options)


def _ase_db(path: str, options: ReadOptions) -> FrameFile:
    from pimlip_zoo.datasets.readers.ase_db import AseDatabase

    return AseDatabase(path, options)


def _aselmdb(path: str, options: ReadOptions) -> FrameFile:
    from pimlip_zoo.datasets.readers.aselmdb import AseLmdbFile

    return AseLmdbFile(path, options)


def _ase(path: str, options: ReadOptions) -> FrameFile:
    if not Path(path).is_dir():
        check_bounded(path)
    from pimlip_zoo.datasets.readers.ase_file import AseFile

    return AseFile(path, options)


_READERS: dict[str, Callable[[str, ReadOptions], FrameFile]] = {
    "extxyz": _extxyz,
    "lmdb": _store,
    "npz": _npz,
    "hdf5": _hdf5,
    "deepmd": _deepmd,
    "n2p2": _n2p2,
    "db": _ase_db,
    "aselmdb": _aselmdb,
    "ase": _ase,
}
_SUFFIXES = {
    ".extxyz": "extxyz",
    ".xyz": "extxyz",
    ".lmdb": "lmdb",
    ".npz": "npz",
    ".h5": "hdf5",
    ".hdf5": "hdf5",
    ".db": "db",
    ".aselmdb": "aselmdb",
}
_COMPRESSED = (".gz", ".bz2", ".xz")


def open_source(source: DataSource) -> FrameFile:
    """The reader of a source.

    Raises:
        InputError: for a file that is not there or cannot be opened.
    """
    if source.is_builtin:
        return _builtin(source.path, source.options)
    path = Path(source.path)
    with reading(path):
        if not path.exists():
            raise no_such_file(path)
        if not path.is_dir() and regular_file(path).stat().st_size == 0:
            raise InputError("the file is empty", file=path)
        name = source.options.format or _guess(path)
        return _READERS.get(name, _ase)(source.path, source.options)


def check_bounded(path: str | Path) -> None:
    """Whether a file that ASE is to read ends, and is about as large as it looks.

    Raises:
        InputError: for what is no file, what announces more atoms than it has, and what decompression would blow up.
    """
    from pimlip_zoo.datasets.readers.extxyz import check_expansion

    path = regular_file(path)
    if _guess(path) == "extxyz":
        _extxyz(str(path), ReadOptions()).count()
    elif path.suffix.lower() in _COMPRESSED:
        check_expansion(path)


def window_of(frames: slice, file: FrameFile) -> range:
    """The indices of a slice; the file is counted only where the slice counts from its end."""
    bounds = (frames.start or 0, frames.stop or 0)
    if min(bounds) < 0:
        with reading(file.finder.file):
            return range(*frames.indices(file.count()))
    stop = sys.maxsize if frames.stop is None else frames.stop
    return range(frames.start or 0, stop, frames.step or 1)


def check_chosen(source: DataSource, count: int, window: range = ALL_FRAMES) -> None:
    """Refuse a split that names frames which the source does not have, or of a source with more or fewer frames.

    Args:
        source: the source.
        count: frames that it has.
        window: where to look.

    Raises:
        InputError: naming the last such frame.
    """
    last = max((index for index in source.indices or () if index in window), default=-1)
    if last >= count:
        raise InputError(
            f"the split names frame {last}, there are {count}",
            file=source.path,
            mend="the data are not those that were split: split them again",
        )
    if window is ALL_FRAMES and source.whole is not None and source.whole != count:
        raise InputError(
            f"the split is of {source.whole} frames, there are {count}",
            file=source.path,
            mend="the data are not those that were split: split them again",
        )


def _guess(path: Path) -> str:
    if path.is_dir():
        return _guess_folder(path)
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in _COMPRESSED:
        suffixes.pop()
    if path.name in ("input.data", "output.data"):
        return "n2p2"
    return _SUFFIXES.get(suffixes[-1] if suffixes else "", "ase")


def _guess_folder(path: Path) -> str:
    if (path / "data.mdb").exists() or any(path.glob("*.lmdb")):
        return "lmdb"
    if next(path.rglob("type.raw"), None) is not None:
        return "deepmd"
    if any(path.glob("*.aselmdb")):
        return "aselmdb"
    names = sorted(entry.name for entry in path.iterdir())
    raise InputError(
        "is a folder of no known layout",
        file=path,
        mend=f"it holds {', '.join(names[:5])}" if names else "it is empty; " + did_you_mean("", _READERS),
    )
