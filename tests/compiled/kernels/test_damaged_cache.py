"""A compiled kernel that was truncated or changed is made again: mapped, it would end the process."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pimlip_zoo.compiled.kernels import build
from pimlip_zoo.files import content_hash, seal, sealed

pytestmark = pytest.mark.compiler

SOURCE = """
#include <stdint.h>
void kernel(int64_t rows, int64_t threads, double *out) { for (int64_t i = 0; i < rows; ++i) out[i] = %d.0; }
"""


def value(source):
    (function,) = build.compile_kernels([source])
    out = (ctypes.c_double * 3)()
    function(ctypes.c_int64(3), ctypes.c_int64(1), out)
    return list(out)


def truncated(library):
    os.truncate(library, 5000)


def shortened_by_one(library):
    os.truncate(library, library.stat().st_size - 1)


def emptied(library):
    os.truncate(library, 0)


def changed(library):
    raw = bytearray(library.read_bytes())
    raw[len(raw) // 2] ^= 64
    library.write_bytes(raw)


DAMAGES = (truncated, shortened_by_one, emptied, changed)


def test_damaged_kernels_are_compiled_again(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    sources = [SOURCE % (2 + number) for number in range(len(DAMAGES))]
    build.compile_kernels(sources)
    libraries = sorted(build.cache_folder().glob("*.so"))
    assert len(libraries) == len(DAMAGES)
    for library, damage in zip(libraries, DAMAGES, strict=True):
        copy = library.with_suffix(".copy")
        copy.write_bytes(
            library.read_bytes()
        )  # not the file that this process has mapped, nor one with other names
        copy.replace(library)
        damage(library)
    # Another process, which a damaged library would end.
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from test_damaged_cache import SOURCE, value\n"
        "print([value(SOURCE % (2 + number))[2] for number in range(4)])\n"
    )
    command = [sys.executable, "-c", program, str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, "[2.0, 3.0, 4.0, 5.0]"), done.stderr
    again = sorted(build.cache_folder().glob("*.so"))
    assert [library.stem.split("-")[0] for library in again] == [lib.stem.split("-")[0] for lib in libraries]
    assert all(content_hash(library)[:16] == library.stem.split("-")[1] for library in again)


def test_a_sealed_file_is_what_it_was(tmp_path):
    path = tmp_path / "a.so"
    assert not sealed(path)
    path.write_bytes(bytes(range(256)) * 10)
    assert not sealed(path)
    seal(path)
    assert sealed(path)
    for damage in (shortened_by_one, changed, emptied):
        path.write_bytes(bytes(range(256)) * 10)
        assert sealed(path)
        damage(path)
        assert not sealed(path)


def test_a_pipe_in_the_place_of_a_library_or_its_seal_is_not_waited_for(tmp_path):
    path = tmp_path / "a.so"
    os.mkfifo(path)
    assert not sealed(path)
    path.unlink()
    path.write_bytes(b"content")
    os.mkfifo(tmp_path / "a.so.sha256")
    assert not sealed(path)
    os.mkfifo(tmp_path / "abc-0123.so")
    assert build._intact(tmp_path, ["abc"]) == {}
