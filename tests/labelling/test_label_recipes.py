"""The recipes for external programs in docs/guide/labelling.md: constructed by ASE as installed, inputs written."""

import os
import re
from pathlib import Path

import pytest
from ase.build import bulk, molecule
from ase.io import write
from typer.testing import CliRunner

from pimlip_zoo.cli import app

PAGE = Path(__file__).parents[2] / "docs" / "guide" / "labelling.md"
RECIPES = dict(
    re.findall(
        r"^([A-Z][\w -]*?)(?: \(.*?)?:\n\n```python\n(.*?)```",
        PAGE.read_text().split("## Recipes")[1],
        re.DOTALL | re.MULTILINE,
    )
)
SHELL = """#!/bin/sh
echo '* READY'
while read line; do
  case "$line" in VERSION) echo 'CP2K Shell Version: 1.5';; EXIT) exit 0;; esac
  echo '* READY'
done
"""


def called(*arguments, code=0):
    result = CliRunner().invoke(app, ["label", *map(str, arguments)])
    said = " ".join((result.output + getattr(result, "stderr", "")).split()) + str(result.exception or "")
    assert result.exit_code == code, said
    return said


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a molecule, a crystal, and what programs need to be installed with, empty."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    water = molecule("H2O", vacuum=3.0)
    water.info.update(charge=1, multiplicity=2)
    write("water.extxyz", water)
    crystal = bulk("TiO", "rocksalt", 4.2)
    crystal.info["charge"] = 0
    write("crystal.extxyz", crystal)
    for symbol in ("Ti", "O"):
        place = tmp_path / "potentials" / "potpaw_PBE" / symbol
        place.mkdir(parents=True)
        (place / "POTCAR").write_text(f" PAW_PBE {symbol}\n   6.0\n")
    monkeypatch.setenv("VASP_PP_PATH", str(tmp_path / "potentials"))
    (tmp_path / "species").mkdir()
    for name in ("01_H", "08_O", "22_Ti"):
        (tmp_path / "species" / f"{name}_default").write_text(f"  species {name}\n")
    shell = tmp_path / "cp2k_shell.psmp"
    shell.write_text(SHELL)
    shell.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


def test_there_is_a_recipe_for_each_program():
    assert list(RECIPES) == ["ORCA", "CP2K", "VASP", "Quantum ESPRESSO", "FHI-aims"]


@pytest.mark.parametrize(
    ("program", "data", "inputs"),
    [
        ("ORCA", "water", {"orca.inp": "*xyz 1 2"}),
        ("VASP", "crystal", {"INCAR": "KSPACING = 0.25", "POSCAR": "Ti", "POTCAR": "PAW_PBE O"}),
        ("Quantum ESPRESSO", "crystal", {"espresso.pwi": "tprnfor          = .true."}),
        ("FHI-aims", "water", {"control.in": "charge", "geometry.in": "atom"}),
    ],
)
def test_the_recipe_writes_the_input_of_its_program(here, program, data, inputs):
    name = f"recipe_{program[:4].lower()}"
    Path(f"{name}.py").write_text(RECIPES[program].replace("/opt/species/light", str(here / "species")))
    called(f"{data}.extxyz", "--calculator", f"{name}:make", "--write-inputs", "jobs")
    for file, content in inputs.items():
        assert content in Path("jobs/00000", file).read_text()


def test_files_of_cp2k_are_named_for_each_structure(here):
    from pimlip_zoo.labelling.calculators import find_labeller
    from pimlip_zoo.labelling.evaluate import compute
    from pimlip_zoo.labelling.failures import CalculationError
    from pimlip_zoo.labelling.structures import load_structures

    Path("named_cp2k.py").write_text(RECIPES["CP2K"])
    (structure,) = load_structures("water.extxyz")
    with pytest.raises(CalculationError):  # this shell computes nothing
        compute(structure, find_labeller("named_cp2k:make"), here / "scratch" / "one")
    assert "PROJECT scratch/one/cp2k" in Path("scratch/one/cp2k.inp").read_text()
    assert not Path("cp2k.inp").exists()


def test_the_recipe_of_cp2k_starts_its_shell(here):
    Path("recipe_cp2k.py").write_text(RECIPES["CP2K"])
    called("water.extxyz", "--calculator", "recipe_cp2k:make", "--write-inputs", "jobs")
    assert Path("jobs/00000/structure.extxyz").exists()
    Path("cp2k_shell.psmp").unlink()
    said = called("water.extxyz", "--calculator", "recipe_cp2k:make", "--write-inputs", "more", code=1)
    assert "recipe_cp2k:make fails" in said
    assert not Path("more").exists()


@pytest.mark.parametrize("program", ["ORCA", "VASP", "Quantum ESPRESSO", "FHI-aims"])
def test_a_program_runs_in_a_folder_of_its_own_and_its_failure_is_kept(here, program):
    text = RECIPES[program].replace("/opt/species/light", str(here / "species"))
    text = re.sub(r'command="[^"]*"', f'command="{here}/program"', text)
    Path(f"run_{program[:4].lower()}.py").write_text(text)
    Path("program").write_text("#!/bin/sh\npwd > ran\nexit 3\n")
    Path("program").chmod(0o755)
    data = "crystal" if program in ("Quantum ESPRESSO", "VASP") else "water"
    called(f"{data}.extxyz", "--calculator", f"run_{program[:4].lower()}:make", "-o", "out.lmdb", code=1)
    (folder,) = Path("out.lmdb.scratch").iterdir()
    assert (folder / "ran").read_text().strip() == str(folder.absolute())
