"""The wheel works where the checkout is not: in an environment of its own, from another folder."""

import os
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TRACKED = ROOT / ".git"


def run(command, **options):
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        check=False,
        env={**environment, "OMP_NUM_THREADS": "1"},
        **options,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """Both distributions, built from a copy: a build leaves files in its folder."""
    pytest.importorskip("build")
    folder = tmp_path_factory.mktemp("dist")
    source = folder / "source"
    files = run(["git", "ls-files", "-z"], cwd=ROOT).split("\0") if TRACKED.exists() else None
    if files is None:
        pytest.skip("not a checkout")
    for name in filter(None, files):
        if (ROOT / name).is_file():
            target = source / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / name).read_bytes())
    run([sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, source])
    return folder


@pytest.mark.slow
def test_the_distributions_hold_licences_data_and_sources_of_what_is_compiled(dist):
    (wheel,), (sdist,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    names = zipfile.ZipFile(wheel).namelist()
    for needed in (
        "pimlip_zoo/py.typed",
        "pimlip_zoo/deploy/lammps/pair_pimlip.cpp",
        "pimlip_zoo/deploy/lammps/CMakeLists.txt",
        *(f"pimlip_zoo/training/weights/organic-gfn2-{name}.ckpt" for name in ("nequip", "mace", "allegro")),
    ):
        assert needed in names
    shipped = {name.rsplit("/", 1)[-1] for name in names if "/licenses/" in name}
    assert shipped == {"LICENSE", "MIT.txt", "GPL-2.0-only.txt"}
    assert any("datasets/data/" in name for name in names)
    tracked = {p for p in run(["git", "ls-files", "pimlip_zoo"], cwd=ROOT).split() if (ROOT / p).is_file()}
    assert tracked <= set(names), "the wheel has every file of the package"
    with tarfile.open(sdist) as archive:
        assert any(name.endswith("/pyproject.toml") for name in archive.getnames())


@pytest.mark.slow
def test_the_wheel_trains_and_exports_in_an_empty_environment(dist, tmp_path):
    """A new environment with what pip fetches; without a package index this fails, as it should."""
    (wheel,) = dist.glob("*.whl")
    environment = tmp_path / "env"
    run([sys.executable, "-m", "venv", environment])
    pip = [environment / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check"]
    run([*pip, f"torch=={version('torch').split('+')[0]}"])
    run([*pip, wheel])
    command = environment / "bin" / "pimlip-zoo"
    where = run(
        [environment / "bin" / "python", "-c", "import pimlip_zoo; print(pimlip_zoo.__file__)"], cwd=tmp_path
    )
    assert str(environment) in where
    small = ["--set", "model.channels=4", "--set", "trainer.valid_every=5"]
    run([command, "train", "--max-steps", "5", "--out", "run", *small], cwd=tmp_path)
    run([command, "export", "run", "--format", "native", "-o", "model.pimlip"], cwd=tmp_path)
    run([command, "eval", "run", "--data", "builtin:ethanol-gfn2/valid"], cwd=tmp_path)
