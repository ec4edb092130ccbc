"""Programs are loaded from a cache that is the user's alone, wherever they can be loaded from."""

from __future__ import annotations

import ctypes
import os
import shutil
import stat
import tempfile
from pathlib import Path

import pytest

from pimlip_zoo.compiled import compiler, private
from pimlip_zoo.compiled.compiler import compile_library, writable
from pimlip_zoo.compiled.kernels import build
from pimlip_zoo.deploy.lammps.build import _compile
from pimlip_zoo.errors import InputError
from pimlip_zoo.files import belongs_to_user, content_hash, seal, sealed

pytestmark = pytest.mark.skipif(not hasattr(os, "getuid"), reason="this system has no owners of files")


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def of_others(monkeypatch):
    """Everything belongs to somebody else from now on."""
    return lambda: monkeypatch.setattr(os, "getuid", lambda: 4711)


def test_from_an_own_folder_others_are_kept_out(tmp_path):
    folder = tmp_path / "pimlip-zoo" / "kernels"
    folder.mkdir(parents=True)
    for place in (folder, folder.parent):
        place.chmod(0o777)
    assert writable(folder) == folder
    assert mode(folder) == mode(folder.parent) == 0o755


def test_a_folder_whose_mode_cannot_be_changed_is_not_trusted(tmp_path, monkeypatch):
    folder = tmp_path / "kernels"
    folder.mkdir()
    folder.chmod(0o777)
    monkeypatch.setattr(Path, "chmod", lambda *_: None)  # as on file systems without modes
    assert not belongs_to_user(folder)


def test_a_folder_of_somebody_else_is_not_used_and_that_is_said_once(tmp_path, of_others, caplog):
    compiler._say_whose.cache_clear()
    of_others()
    folder = tmp_path / "kernels"
    assert writable(folder) == writable(folder) != folder
    assert caplog.text.count("belongs to somebody else") == 1


def test_a_sealed_file_is_the_users_alone(tmp_path, of_others):
    library = tmp_path / "a.so"
    library.write_bytes(b"program")
    library.chmod(0o777)
    seal(library)
    assert mode(library) == 0o755
    assert sealed(library)
    library.chmod(0o775)
    assert not sealed(library)
    library.chmod(0o755)
    of_others()
    assert not sealed(library)


def test_kernels_that_others_could_have_written_are_made_again(tmp_path):
    text = tmp_path / "text"
    text.write_bytes(b"kernel")
    library = tmp_path / f"digest-{content_hash(text)[:16]}.so"
    shutil.copy(text, library)
    assert build._intact(tmp_path, ["digest"]) == {"digest": library}
    library.chmod(0o666)
    assert build._intact(tmp_path, ["digest"]) == {}
    assert not library.exists()


def test_a_plugin_in_a_folder_of_somebody_else_is_not_built(tmp_path, of_others):
    of_others()
    with pytest.raises(InputError, match=r"belongs to somebody else.*XDG_CACHE_HOME"):
        _compile(["c++"], tmp_path / "made" / "pimlipplugin.so")


@pytest.mark.compiler
def test_where_no_program_may_run_in_the_cache_it_runs_from_another_place(tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "a.c").write_text("int seven(void) { return 7; }")
    compile_library(cache / "a.c", cache / "a.so", flags=("-fPIC",))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    real = ctypes.CDLL

    def without_programs(path):
        if path.startswith(str(cache)):
            raise OSError(f"{path}: failed to map segment from shared object")
        return real(path)

    monkeypatch.setattr(ctypes, "CDLL", without_programs)
    loaded = private.load_private(cache / "a.so", content_hash(cache / "a.so"))
    assert loaded.seven() == 7
    assert {path.name for path in tmp_path.iterdir()} == {"cache"}
    assert {path.name for path in cache.iterdir()} == {"a.c", "a.so"}
