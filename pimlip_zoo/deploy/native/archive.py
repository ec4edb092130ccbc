"""The file of a native model: metadata, C for three kinds of processors, weights; a zip archive without compression."""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pimlip_zoo.deploy.native.uncertainty import KEY, OtherWeights
from pimlip_zoo.errors import InputError, reading

SUFFIX = ".pimlip"
TARGETS = {64: 32, 32: 16, 16: 16}
"""Bytes of a vector, and registers, of the processors that the C is written for: AVX-512, AVX2, any other."""

_ROOT = "pimlip"


@dataclass(frozen=True)
class NativeFile:
    """What is in it."""

    metadata: Mapping[str, str]
    sources: Mapping[int, str]
    """C by the bytes of a vector."""
    weights: bytes
    others: OtherWeights | None = None
    """With which it says how certain its forces are."""


def source_entry(vector_bytes: int) -> str:
    """Name of a source in the archive; ``extra/<name>`` has its hash."""
    return f"model-{vector_bytes}.c"


def write_native(path: Path, content: NativeFile) -> None:
    """Write a file; readers in C++ need no library for zip archives that are not compressed."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        hashes = {source_entry(width): source_hash(source) for width, source in content.sources.items()}
        for key, value in {**content.metadata, **hashes}.items():
            archive.writestr(f"{_ROOT}/extra/{key}", value)
        for width, source in content.sources.items():
            archive.writestr(f"{_ROOT}/{source_entry(width)}", source)
        archive.writestr(f"{_ROOT}/weights.bin", content.weights)
        if content.others is not None:
            archive.writestr(f"{_ROOT}/uncertainty.bin", content.others.content)


def read_native(path: str | os.PathLike[str]) -> NativeFile:
    """Read a file back.

    Raises:
        InputError: when it is missing, truncated, of another version, or no native model.
    """
    from pimlip_zoo.deploy.metadata import read_metadata

    metadata = read_metadata(path)
    try:
        with zipfile.ZipFile(path) as archive:
            _require_stored(archive)
            sources = {width: archive.read(f"{_ROOT}/{source_entry(width)}").decode() for width in TARGETS}
            weights = archive.read(f"{_ROOT}/weights.bin")
            others = archive.read(f"{_ROOT}/uncertainty.bin") if KEY in metadata else None
    except KeyError as error:
        raise InputError(
            "not a native model", file=path, hint="write it with `pimlip-zoo export --format native`"
        ) from error
    except (OSError, zipfile.BadZipFile, UnicodeDecodeError) as error:
        raise InputError("not a complete exported model", file=path, hint="export it again") from error
    for width, source in sources.items():
        if metadata.get(source_entry(width)) != source_hash(source):
            raise InputError(
                f"the hash of {source_entry(width)} is not that of its text",
                file=path,
                hint="export it again",
            )
    if others is None:
        return NativeFile(metadata, sources, weights)
    with reading(path):
        return NativeFile(metadata, sources, weights, OtherWeights.read(metadata[KEY], others, len(weights)))


def _require_stored(archive: zipfile.ZipFile) -> None:
    """As the plugin does: what is compressed was not written here, and may be of any size."""
    if any(item.compress_type != zipfile.ZIP_STORED for item in archive.infolist()):
        raise zipfile.BadZipFile("a native model is not compressed")


def source_hash(source: str) -> str:
    """What compiled models are kept under."""
    return hashlib.sha256(source.encode()).hexdigest()
