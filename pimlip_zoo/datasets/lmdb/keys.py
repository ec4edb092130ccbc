"""Keys of a store's LMDB file and its metadata. Frames sort last, so that they can be appended."""

from __future__ import annotations

import json
import math
import struct
from typing import Any

from pimlip_zoo.errors import InputError

FORMAT = "pimlip-zoo frames"
VERSION = 1
INDEX_CUTOFF = 5.0
"""Å; edges are counted within it, and scaled to other cutoffs."""
META = b"\x00meta"
_MAX_META = 1 << 24


def index_key(block: int) -> bytes:
    """Key of a block of the index."""
    return b"\x01" + struct.pack(">I", block)


def checksum_key(block: int) -> bytes:
    """Key of the checksums of the frames of a block of the index, in its order."""
    return b"\x00crc" + struct.pack(">I", block)


def composition_key(number: int) -> bytes:
    """Key of a composition: pairs of atomic number (u1) and count (<u4)."""
    return b"\x02" + struct.pack(">I", number)


def frame_key(index: int) -> bytes:
    """Key of a frame."""
    return b"\x03" + struct.pack(">Q", index)


def new_meta(**given: Any) -> dict[str, Any]:
    """The metadata of an empty store.

    Raises:
        ValueError: for a key that the format itself uses.
    """
    taken = {
        "format",
        "version",
        "count",
        "compositions",
        "index_cutoff",
        "units",
        "progress",
        "charged",
    } & given.keys()
    if taken:
        raise ValueError(f"the format has its own {', '.join(sorted(taken))}")
    return {
        "format": FORMAT,
        "version": VERSION,
        "count": 0,
        "compositions": 0,
        "index_cutoff": INDEX_CUTOFF,
        "units": {"length": "Å", "energy": "eV", "forces": "eV/Å", "stress": "eV/Å^3"},
        "precision": "float64",
        **given,
    }


def load_meta(raw: bytes | None, *, file: object) -> dict[str, Any]:
    """The metadata of a store.

    Raises:
        InputError: for something that is no store, or one of another version.
    """
    if raw is None or len(raw) > _MAX_META:
        raise InputError(
            "is no store of pimlip-zoo",
            file=file,
            hint="convert it: pimlip-zoo data convert DATA -o NEW.lmdb",
        )
    try:
        meta = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise InputError("has unreadable metadata", file=file) from error
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise InputError("is no store of pimlip-zoo", file=file)
    version = meta.get("version")
    if version != VERSION:
        newer = isinstance(version, int) and version > VERSION
        raise InputError(
            f"has version {version!r} of the format, this package knows {VERSION}",
            file=file,
            hint="update pimlip-zoo" if newer else "convert the data again",
        )
    for key in ("count", "compositions"):
        value = meta.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 40:
            raise InputError(f"has an impossible {key} {value!r}", file=file)
    cutoff = meta.get("index_cutoff")
    if not isinstance(cutoff, (int, float)) or not 0 < cutoff < math.inf:
        raise InputError(f"has an impossible index_cutoff {cutoff!r}", file=file)
    return meta
