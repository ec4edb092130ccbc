"""Which class reads which file."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

from pimlip_zoo.datasets.readers.announced import check_announced
from pimlip_zoo.datasets.readers.file import ALL_FRAMES, FrameFile
from pimlip_zoo.datasets.readers.lammps_types import check_elements_named
from pimlip_zoo.datasets.readers.spec import DataSource, ReadOptions
from pimlip_zoo.datasets.readers.sqlite_file import check_tables
from pimlip_zoo.errors import InputError, did_you_mean, no_such_file, reading
from pimlip_zoo.files import regular_file

_READERS = {
    "builtin": "inside.BuiltinSet",
    "extxyz": "extxyz.ExtxyzFile",
    "lmdb": "inside.StoreFile",
    "npz": "npz.NpzFile",
    "hdf5": "hdf5.Hdf5File",
    "deepmd": "deepmd.DeepmdFolder",
    "n2p2": "n2p2.N2p2File",
    "db": "ase_db.AseDatabase",
    "aselmdb": "aselmdb.AseLmdbFile",
    "ase": "ase_file.AseFile",
}
"""Format -> module and class; what they need is imported when there is such a file."""


def _opened(name: str, path: str, options: ReadOptions) -> FrameFile:
    kind = None
    if name not in _READERS:  # as ASE calls it
        name, kind = "ase", name
    if name == "ase" and not Path(path).is_dir():
        check_bounded(path)
        check_elements_named(path, kind)
    module, kind = _READERS[name].split(".")
    file: FrameFile = getattr(import_module(f"{__package__}.{module}"), kind)(path, options)
    return file


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
        return _opened("builtin", source.path, source.options)
    path = Path(source.path)
    with reading(path):
        if not path.exists():
            raise no_such_file(path)
        if not path.is_dir() and regular_file(path).stat().st_size == 0:
            raise InputError("the file is empty", file=path)
        return _opened(source.options.format or _guess(path), source.path, source.options)


def check_bounded(path: str | Path) -> None:
    """Whether a file that ASE is to read ends, and is about as large as it looks.

    Raises:
        InputError: for what is no file, what announces more atoms than it has, and what decompression or a database
            would blow up.
    """
    from pimlip_zoo.datasets.readers.extxyz import ExtxyzFile, check_expansion

    path = regular_file(path)
    if _guess(path) == "extxyz":
        ExtxyzFile(str(path), ReadOptions()).check()
        return
    if path.suffix.lower() in _COMPRESSED:
        check_expansion(path)
    check_announced(path)
    check_tables(path)


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
            hint="the data are not those that were split: split them again",
        )
    if window is ALL_FRAMES and source.whole is not None and source.whole != count:
        raise InputError(
            f"the split is of {source.whole} frames, there are {count}",
            file=source.path,
            hint="the data are not those that were split: split them again",
        )


def format_by_ending(path: Path) -> str | None:
    """The format that the ending of a file's name means; None: it means none."""
    return _SUFFIXES.get(path.suffix.lower())


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
        hint=f"it holds {', '.join(names[:5])}" if names else "it is empty; " + did_you_mean("", _READERS),
    )
