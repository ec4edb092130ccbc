"""Ways to damage a file: as disks, editors and scripts do, from bytes to single fields."""

from __future__ import annotations

import io
import re

import numpy as np

ODD = [None, True, -1, 0, 2.5, float("nan"), "", "x", "-1", [], [1, 2], {}, {"a": 1}, [[1.0]], 1 << 40]
_NUMBER = re.compile(rb"-?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?")
_WORDS = [
    b"nan",
    b"-1",
    b"0",
    b"1e999",
    b"",
    b"x",
    b"\xff",
    b"1.5",
    b"[",
    b"{}",
    b'"',
    b"None",
    b"\xc2\xb2",
    b"7 7",
]


def damaged(raw, rng):
    """The bytes of a file, damaged in one of many ways."""
    return _WAYS[rng.integers(len(_WAYS))](raw, rng)


def _bits(raw, rng):
    changed = bytearray(raw)
    for _ in range(rng.integers(1, 4)):
        place = int(rng.integers(8 * len(raw)))
        changed[place // 8] ^= 1 << place % 8
    return bytes(changed)


def _early_bits(raw, rng):
    """Where headers are."""
    head = raw[: max(len(raw) // 8, 64)]
    return _bits(head, rng) + raw[len(head) :]


def _span(raw, rng):
    start, stop = sorted(rng.integers(0, len(raw) + 1, 2).tolist())
    return start, min(stop, start + 200)


def _without(raw, rng):
    start, stop = _span(raw, rng)
    return raw[:start] + raw[stop:]


def _cut_off(raw, rng):
    return raw[: int(rng.integers(1, len(raw)))]


def _twice(raw, rng):
    start, stop = _span(raw, rng)
    return raw[:stop] + raw[start:]


def _noise(raw, rng):
    start, stop = _span(raw, rng)
    return raw[:start] + rng.bytes(stop - start) + raw[stop:]


def _zeros(raw, rng):
    start, stop = _span(raw, rng)
    return raw[:start] + bytes(stop - start) + raw[stop:]


def _number(raw, rng):
    found = list(_NUMBER.finditer(raw))
    if not found:
        return _bits(raw, rng)
    one = found[rng.integers(len(found))]
    return raw[: one.start()] + _WORDS[rng.integers(len(_WORDS))] + raw[one.end() :]


def _line(raw, rng):
    lines = raw.splitlines(keepends=True)
    place = int(rng.integers(len(lines)))
    if rng.integers(2):
        lines.insert(int(rng.integers(len(lines))), lines[place])
    else:
        del lines[place]
    return b"".join(lines) or b"\n"


_WAYS = (_bits, _early_bits, _without, _cut_off, _twice, _noise, _zeros, _number, _number, _line)


def odd_array(array, rng):
    """An array of another shape, type or content."""
    array = np.asarray(array)
    flat = array.reshape(-1)
    ways = [
        lambda: flat[: int(rng.integers(0, max(flat.size, 1)))],
        lambda: array[None],
        lambda: flat.reshape(-1, 1),
        lambda: np.array(None, dtype=object),
        lambda: array.astype(str),
        lambda: array.astype(bool),
        lambda: array.astype(complex) if array.dtype.kind in "iufb" else array,
        lambda: np.array(ODD[rng.integers(len(ODD))] or 0, dtype=object),
        lambda: np.full(array.shape, np.nan),
        lambda: np.full(array.shape, -1),
        lambda: np.full(array.shape, 1e300),
        lambda: np.zeros(array.shape, dtype=[("a", "f8")]),
        lambda: np.zeros(0),
        lambda: np.array("2020-01-01", dtype="M8[D]"),
        lambda: array.astype(">f4") if array.dtype.kind in "iuf" else array,
    ]
    return ways[rng.integers(len(ways))]()


def odd_npz(raw, rng):
    """An archive of which one array is odd, gone, or under another name."""
    with np.load(io.BytesIO(raw)) as archive:
        arrays = dict(archive)
    name = sorted(arrays)[rng.integers(len(arrays))]
    way = rng.integers(4)
    if way == 0:
        del arrays[name]
    elif way == 1:
        arrays["energies" if name != "energies" else "F"] = arrays.pop(name)
    else:
        arrays[name] = odd_array(arrays[name], rng)
    out = io.BytesIO()
    np.savez(out, **arrays)
    return out.getvalue()


def odd_npy(raw, rng):
    """A single array that is odd."""
    out = io.BytesIO()
    np.save(out, odd_array(np.load(io.BytesIO(raw)), rng), allow_pickle=True)
    return out.getvalue()


def odd_table(table, rng):
    """A nested table of plain values, one of which is odd, gone, or under another name; changed in place."""
    place, key = table, None
    while True:
        keys = list(place) if isinstance(place, dict) else range(len(place))
        key = list(keys)[rng.integers(len(keys))]
        inner = place[key]
        if not isinstance(inner, dict | list) or not inner or rng.integers(3) == 0:
            break
        place = inner
    way = rng.integers(6)
    if way == 0:
        del place[key]
    elif way == 1 and isinstance(place, dict):
        place[ODD[1:8][rng.integers(7)]] = place.pop(key)
    else:
        place[key] = ODD[rng.integers(len(ODD))]
    return table
