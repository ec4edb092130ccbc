"""One frame as bytes: a fixed header, raw arrays, a checksum. Reading it runs no code and trusts no length.

The layout is specified in ``docs/guide/data.md``; everything is little-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any
from zlib import crc32

import msgpack  # type: ignore[import-untyped]
import numpy as np
from numpy.typing import NDArray

from pimlip_zoo.datasets.frame import EVEN, NO_CELL, Frame

HEADER = struct.Struct("<IHBBIIdd")
"""crc32 of the rest, layout, flags, periodic directions, natoms, bytes of info, energy, weight."""
KIND = slice(4, 12)
"""Layout, flags, periodic directions and number of atoms of a record: what fixes the place of all but its info."""
LAYOUT = 1
MAX_ATOMS = 1 << 28

ENERGY, FORCES, STRESS, CELL, POSITIONS32, FORCES32, WEIGHTS = 1, 2, 4, 8, 16, 32, 64
_KNOWN_FLAGS = 127
_MOLECULE_FLAGS = ENERGY | FORCES | POSITIONS32 | FORCES32
_KIND = struct.Struct("<HBBI")
_WEIGHTS = struct.Struct("<ddd")
_NAN = float("nan")
_PBC = np.array([[bool(bits & 1), bool(bits & 2), bool(bits & 4)] for bits in range(8)])
_PBC.flags.writeable = False
_PBC_BITS = {row.tobytes(): bits for bits, row in enumerate(_PBC)}
_MAX_INFO = 1 << 20


class RecordError(ValueError):
    """Bytes that are no frame."""


def label_mask(frame: Frame) -> int:
    """The flags of the labels that a frame has."""
    return (
        (ENERGY if frame.energy is not None else 0)
        | (FORCES if frame.forces is not None else 0)
        | (STRESS if frame.stress is not None else 0)
    )


def encode(frame: Frame, *, float32: bool = False) -> bytes:
    """The bytes of a frame.

    Args:
        frame: the structure; its ``info`` may hold text, numbers and booleans.
        float32: positions and forces in single precision; energies, cells and stress stay double.
    """
    n = len(frame.numbers)
    flags = label_mask(frame)
    dtype = np.dtype("<f4" if float32 else "<f8")
    if float32:
        flags |= POSITIONS32 | (FORCES32 if frame.forces is not None else 0)
    parts = []
    if frame.cell is not NO_CELL and np.count_nonzero(frame.cell):
        flags |= CELL
        parts.append(np.ascontiguousarray(frame.cell, dtype="<f8").tobytes())
    if frame.stress is not None:
        parts.append(np.ascontiguousarray(frame.stress, dtype="<f8").tobytes())
    if frame.label_weights != EVEN:
        flags |= WEIGHTS
        parts.append(np.array(frame.label_weights, dtype="<f8").tobytes())
    parts.append(np.ascontiguousarray(frame.positions, dtype=dtype).tobytes())
    if frame.forces is not None:
        parts.append(np.ascontiguousarray(frame.forces, dtype=dtype).tobytes())
    parts.append(frame.numbers.astype(np.uint8).tobytes())
    info = msgpack.packb(frame.info) if frame.info else b""
    parts.append(info)
    pbc = _PBC_BITS[frame.pbc.tobytes()]
    energy = _NAN if frame.energy is None else frame.energy
    header = HEADER.pack(0, LAYOUT, flags, pbc, n, len(info), energy, frame.weight)[4:]
    body = b"".join((header, *parts))
    return struct.pack("<I", crc32(body)) + body


def encode_all(frames: Sequence[Frame], *, float32: bool = False) -> list[bytes]:
    """The bytes of each frame, as :func:`encode` makes them; those of molecules of one size are laid out at once."""
    records = [b""] * len(frames)
    alike: dict[tuple[int, int], list[int]] = {}
    for place, frame in enumerate(frames):
        n = len(frame.numbers)
        plain = frame.cell is NO_CELL and frame.stress is None and frame.label_weights == EVEN
        if plain and frame.positions.shape == (n, 3) and n:
            alike.setdefault((n, label_mask(frame)), []).append(place)
        else:
            records[place] = encode(frame, float32=float32)
    for (n, flags), places in alike.items():
        bytes_of_alike = _encode_alike([frames[i] for i in places], n, flags, float32=float32)
        for place, record in zip(places, bytes_of_alike, strict=True):
            records[place] = record
    return records


def _encode_alike(frames: list[Frame], n: int, flags: int, *, float32: bool) -> Iterator[bytes]:
    """Frames without cell, stress and weights of labels, with n atoms and the same labels."""
    if float32:
        flags |= POSITIONS32 | (FORCES32 if flags & FORCES else 0)
    infos = [msgpack.packb(frame.info) if frame.info else b"" for frame in frames]
    rows = np.zeros(len(frames), _molecule(_KIND.pack(LAYOUT, flags, 0, n)))
    kinds = [_KIND.pack(LAYOUT, flags, _PBC_BITS[frame.pbc.tobytes()], n) for frame in frames]
    rows["kind"] = np.frombuffer(b"".join(kinds), "V8")
    rows["info"] = [len(info) for info in infos]
    rows["weight"] = [frame.weight for frame in frames]
    rows["energy" if flags & ENERGY else "no energy"] = [
        _NAN if frame.energy is None else frame.energy for frame in frames
    ]
    rows["positions"] = [frame.positions for frame in frames]
    if flags & FORCES:
        rows["forces"] = [frame.forces for frame in frames]
    rows["numbers"] = [frame.numbers for frame in frames]
    raw, size = rows.tobytes(), rows.itemsize
    for at, info in zip(range(0, len(raw), size), infos, strict=True):
        body = raw[at + 4 : at + size] + info
        yield struct.pack("<I", crc32(body)) + body


def decode(data: bytes) -> Frame:
    """The frame of some bytes; its arrays are read-only views of them.

    Raises:
        RecordError: for a wrong checksum, an unknown layout, or a length that does not fit.
    """
    size = len(data)
    if size < HEADER.size:
        raise RecordError(f"{size} bytes are too few")
    checksum, layout, flags, pbc, n, info_size, energy, weight = HEADER.unpack_from(data)
    if layout != LAYOUT or flags & ~_KNOWN_FLAGS or pbc > 7:
        raise RecordError(f"unknown layout {layout}, flags {flags}, periodicity {pbc}")
    position_size = 12 * n if flags & POSITIONS32 else 24 * n
    force_size = (12 * n if flags & FORCES32 else 24 * n) if flags & FORCES else 0
    expected = (
        HEADER.size
        + (72 if flags & CELL else 0)
        + (72 if flags & STRESS else 0)
        + (24 if flags & WEIGHTS else 0)
        + position_size
        + force_size
        + n
        + info_size
    )
    if size != expected or n > MAX_ATOMS or info_size > _MAX_INFO:
        raise RecordError(f"{size} bytes where {n} atoms need {expected}")
    if crc32(memoryview(data)[4:]) != checksum:
        raise RecordError("the checksum is wrong")
    at = HEADER.size
    cell, stress, forces, label_weights = NO_CELL, None, None, EVEN
    if flags & CELL:
        cell = np.frombuffer(data, "<f8", 9, at).reshape(3, 3)
        at += 72
    if flags & STRESS:
        stress = np.frombuffer(data, "<f8", 9, at).reshape(3, 3)
        at += 72
    if flags & WEIGHTS:
        label_weights = _WEIGHTS.unpack_from(data, at)
        at += 24
    positions = np.frombuffer(data, "<f4" if flags & POSITIONS32 else "<f8", 3 * n, at).reshape(n, 3)
    at += position_size
    if flags & FORCES:
        forces = np.frombuffer(data, "<f4" if flags & FORCES32 else "<f8", 3 * n, at).reshape(n, 3)
        at += force_size
    return Frame(
        np.frombuffer(data, np.uint8, n, at).astype(np.int64),
        positions.astype(np.float64) if flags & POSITIONS32 else positions,
        cell,
        _PBC[pbc],
        energy if flags & ENERGY else None,
        forces.astype(np.float64) if forces is not None and flags & FORCES32 else forces,
        stress,
        weight,
        label_weights,
        _info(data[at + n :]) if info_size else {},
    )


def is_molecule(kind: bytes, most_atoms: int) -> bool:
    """Whether records with these bytes at :data:`KIND` have no cell, no stress, and not too many atoms."""
    if len(kind) != _KIND.size:
        return False
    layout, flags, pbc, n = _KIND.unpack(kind)
    return layout == LAYOUT and not flags & ~_MOLECULE_FLAGS and pbc == 0 and 0 < n <= most_atoms


def decode_alike(records: Sequence[bytes]) -> NDArray[Any] | None:
    """Molecules whose records agree at :data:`KIND`, as one array with the fields of :func:`_molecule`.

    None if any is not as it should be: :func:`decode` says what is wrong.
    """
    dtype = _molecule(records[0][KIND])
    size = dtype.itemsize
    joined = b"".join([record[:size] for record in records])
    if len(joined) != size * len(records):
        return None
    rows: NDArray[Any] = np.frombuffer(joined, dtype)
    whole = [size + info for info in rows["info"].tolist()] == [len(record) for record in records]
    if not whole or rows["info"].max() > _MAX_INFO:
        return None
    if [crc32(memoryview(record)[4:]) for record in records] != rows["checksum"].tolist():
        return None
    return rows


@lru_cache(maxsize=256)
def _molecule(kind: bytes) -> np.dtype[Any]:
    """The layout of a molecule's record, up to its info."""
    _, flags, _, n = _KIND.unpack(kind)
    fields: list[Any] = [
        ("checksum", "<u4"),
        ("kind", "V8"),
        ("info", "<u4"),
        ("energy" if flags & ENERGY else "no energy", "<f8"),
        ("weight", "<f8"),
        ("positions", "<f4" if flags & POSITIONS32 else "<f8", (n, 3)),
    ]
    if flags & FORCES:
        fields.append(("forces", "<f4" if flags & FORCES32 else "<f8", (n, 3)))
    return np.dtype([*fields, ("numbers", "u1", (n,))])


def _info(raw: bytes) -> dict[str, Any]:
    try:
        info = msgpack.unpackb(raw, raw=False, strict_map_key=True)
    except (ValueError, msgpack.UnpackException, RecursionError) as error:
        raise RecordError(f"unreadable info: {error}") from error
    if not isinstance(info, dict) or not all(
        isinstance(key, str) and isinstance(value, (str, int, float, bool)) for key, value in info.items()
    ):
        raise RecordError("info is no table of text and numbers")
    return info
