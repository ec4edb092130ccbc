"""What a file that a command is to write may replace: one of its own kind, and nothing else.

A name that was mistyped, or completed by the shell, must not cost the data or the weights that have it.
"""

from __future__ import annotations

import json
import mmap
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from pimlip_zoo.errors import InputError

_HEAD = 4096
_LARGEST_JSON = 1 << 26
_OF_A_RUN = ("config.yaml", "metrics.csv", "data.json")
_OF_OUR_PAGES = b" \xc2\xb7 pimlip-zoo</title>"
_PICTURES = (b"\x89PNG\r\n", b"%PDF-", b"<svg", b"<?xml")
_PICKLED_EXPORT = b"pimlip_zoo.deploy.mliap"
_OURS, _AOT = "/extra/pimlip_format", "aotinductor/pimlip/"
_OUR_CHECKPOINT = b"X\n\x00\x00\x00pimlip_zoo"
"""The key of a checkpoint, as pickle writes text."""
_OF_A_TRAINING = (b"optimizer_states", b"global_step")
_LARGEST_PICKLE = 1 << 26
_LARGEST_LIBRARY = 1 << 27
_OF_THE_PLUGIN = (b"lammpsplugin_init", b"pair_style pimlip")
_LIBRARIES = (b"\x7fELF", b"\xcf\xfa\xed\xfe", b"\xca\xfe\xba\xbe")
_MAGIC_OF_LMDB = b"\xde\xc0\xef\xbe"
_OF_OUR_STORES = b"pimlip-zoo frames"

Kind = tuple[str, Callable[[Path], bool]]
"""What a file is called, and whether one is of this kind."""


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_HEAD)


def _is_page(path: Path) -> bool:
    return _OF_OUR_PAGES in _head(path)


def _is_exported(path: Path) -> bool:
    if _PICKLED_EXPORT in _head(path):
        return True
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if any(name.endswith(_OURS) or f"/{_AOT}" in name for name in names):
                return True
            pickled = [name for name in names if name.partition("/")[2] == "data.pkl"]
            if not pickled or any("/code/" in name for name in names):
                return False
            with archive.open(pickled[0]) as file:
                content = file.read(_LARGEST_PICKLE)
    except (OSError, ValueError, NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error):
        return False
    # Anybody's tensors are such an archive: ours names the package, and the state of a training is no export.
    return _OUR_CHECKPOINT in content and not any(word in content for word in _OF_A_TRAINING)


def _is_plugin(path: Path) -> bool:
    if path.stat().st_size > _LARGEST_LIBRARY or not _head(path).startswith(_LIBRARIES):
        return False
    content = path.read_bytes()
    return all(name in content for name in _OF_THE_PLUGIN)


def _is_store(path: Path) -> bool:
    """By what its metadata say, which a damaged one has somewhere, too."""
    if _head(path)[16:20] != _MAGIC_OF_LMDB:
        return False
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(_OF_OUR_STORES) >= 0


def results(*keys: str) -> Kind:
    """JSON with one of these keys."""

    def is_one(path: Path) -> bool:
        if path.stat().st_size > _LARGEST_JSON:
            return False
        try:
            content = json.loads(path.read_bytes())
        except (ValueError, RecursionError):
            return False
        return isinstance(content, dict) and not content.keys().isdisjoint(keys)

    return "file of these results", is_one


ANY: Kind = ("file", lambda _: True)
"""For what is replaced only where the user asks for it."""
PAGE: Kind = ("page that this program wrote", _is_page)
STORE: Kind = ("store", _is_store)
PICTURE: Kind = ("picture", lambda path: _head(path).startswith(_PICTURES))
EXPORTED: Kind = ("exported model", _is_exported)
PLUGIN: Kind = ("plugin for LAMMPS that this command built", _is_plugin)


def check_output(path: Path | None, kind: Kind, *, key: str) -> None:
    """Refuse to write a file where something of another kind is, or a part of a run.

    Args:
        path: the file; None: none is written.
        kind: what it is going to be.
        key: the option that names it.

    Raises:
        InputError: naming the file.
    """
    if path is None or not path.exists():
        return
    if not path.is_file():
        raise InputError("is a folder, or no ordinary file", file=path, key=key, hint="name a file")
    if _belongs_to_a_run(path):
        what = "checkpoint" if path.resolve().parent.name == "checkpoints" else "part"
        raise InputError(f"is a {what} of a run", file=path, key=key, hint="give a file elsewhere")
    name, is_one = kind
    try:
        same = path.stat().st_size == 0 or is_one(path)
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror or error}", file=path, key=key) from error
    if not same:
        article = "an" if name[0] in "aeiou" else "a"
        raise InputError(
            f"is there, and is not {article} {name}",
            file=path,
            key=key,
            hint="give another, or remove it first",
        )


def check_not_read(path: Path | None, read: Iterable[str | Path], *, key: str) -> None:
    """Refuse to write a file that the same command reads, or into a folder of stores that it reads.

    Args:
        path: the file; None: none is written.
        read: files and folders of data.
        key: the option that names the file.

    Raises:
        InputError: naming the file.
    """
    if path is None:
        return
    place = path.resolve()
    for each in map(Path, read):
        source = each.resolve()
        if (
            place == source
            or place in source.parents
            or (path.exists() and each.exists() and path.samefile(each))
        ):
            raise InputError(
                f"would replace {each}, which is read", file=path, key=key, hint="name another file"
            )
        if place.parent == source and place.suffix == ".lmdb":
            raise InputError(
                f"would be a part of the data in {each}, which are read",
                file=path,
                key=key,
                hint="name a file elsewhere",
            )


def check_unused(folder: Path, names: Iterable[str], *, key: str | None = "--out") -> None:
    """Refuse to begin in a folder in which something has a name that is going to be written there.

    Args:
        folder: which may not be there.
        names: of files.
        key: the option that names the folder, if one does.

    Raises:
        InputError: naming the first.
    """
    for name in names:
        if (folder / name).exists():
            raise InputError(
                "is there, and would be replaced", file=folder / name, key=key, hint="name another folder"
            )


def check_different(outputs: Mapping[str, Path | None]) -> None:
    """Refuse to write two things to one file.

    Raises:
        InputError: naming both options.
    """
    seen: dict[Path, str] = {}
    for key, path in outputs.items():
        if path is None:
            continue
        first = seen.setdefault(path.resolve(), key)
        if first != key:
            raise InputError(f"is the file of {first}, too", file=path, key=key, hint="give another")


def _belongs_to_a_run(path: Path) -> bool:
    place = path.resolve()
    if place.parent.name == "checkpoints":
        return True
    return place.name in _OF_A_RUN and (place.parent / "checkpoints").is_dir()
