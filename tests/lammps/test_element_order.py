"""Elements that are named in another order than the masses say are refused."""

from __future__ import annotations

import shutil
import subprocess

import numpy as np
import pytest
from ase.data import atomic_masses, chemical_symbols
from toys import SPECIES, geometries

import pimlip_zoo.deploy.lammps
from pimlip_zoo.deploy.lammps.data import write_data
from pimlip_zoo.deploy.lammps.run import run_lammps
from pimlip_zoo.errors import InputError

native = pytest.mark.parametrize("file_format", ["native"], indirect=True)


@pytest.fixture
def run(tmp_path, plugin, exported):
    """Runs the structure, whose masses say H C O, with other elements, masses and options."""

    def start(elements, masses="", options="", ranks=1, style="atomic"):
        write_data(tmp_path / "structure.data", geometries()["a molecule in a box"], SPECIES)
        text = f"units metal\natom_style {style}\nplugin load {plugin}\nread_data structure.data\n"
        text += (
            f"pair_style pimlip {options}\npair_coeff * * {exported('nequip')} {elements}\n{masses}\nrun 0\n"
        )
        (tmp_path / "in.lammps").write_text(text)
        return run_lammps(tmp_path / "in.lammps", ranks=ranks)

    return start


@native
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("elements", ["O C H", "H O C", "C H O"])
def test_another_order_is_refused_with_both_masses(elements, ranks, run):
    wrong = next(k for k, (a, b) in enumerate(zip(elements.split(), SPECIES, strict=True)) if a != b)
    named, meant = elements.split()[wrong], SPECIES[wrong]
    masses = {"H": "1.008", "C": "12.011", "O": "15.999"}
    reason = f"atom type {wrong + 1} {named}, whose mass is {masses[named]}, and its mass is {masses[meant]}"
    with pytest.raises(InputError, match=f"{reason}.*masses any"):
        run(elements, ranks=ranks)


@native
def test_the_order_of_the_masses_and_rounded_masses_are_taken(run):
    assert "Loop time" in run("H C O")
    assert "Loop time" in run("H C O", "mass 1 1.0\nmass 2 12\nmass 3 16.0")


@native
def test_isotopes_and_any_order_need_a_keyword(run):
    with pytest.raises(InputError, match=r"atom type 1 H, whose mass is 1.008, and its mass is 2.014"):
        run("H C O", "mass 1 2.014")
    assert "Loop time" in run("H C O", "mass 1 2.014", options="masses any")
    assert "Loop time" in run("O C H", options="masses any")
    with pytest.raises(InputError, match="masses is check or any, not none"):
        run("H C O", options="masses none")


@native
def test_a_type_that_is_another_style_s_may_have_any_mass(tmp_path, plugin, exported):
    write_data(tmp_path / "structure.data", geometries()["a bulk crystal"], SPECIES)
    (tmp_path / "in.lammps").write_text(
        f"units metal\nplugin load {plugin}\nread_data structure.data\nmass 3 500\n"
        f"pair_style hybrid/overlay pimlip lj/cut 3.0\npair_coeff * * pimlip {exported('nequip')} H C NULL\n"
        "pair_coeff 3 3 lj/cut 0.01 1.5\npair_coeff 1*2 3 lj/cut 0.0 1.0\nrun 0\n"
    )
    assert "Loop time" in run_lammps(tmp_path / "in.lammps")


@native
def test_masses_of_single_atoms_are_looked_at(tmp_path, plugin, exported):
    # atom_style sphere has no masses of types: they come from diameters and densities.
    density = {mass: 6 * mass / np.pi for mass in (12.011, 15.999)}
    for mass, reason in (
        (12.011, None),
        (15.999, "atom type 1 C, whose mass is 12.011, and its mass is 15.999"),
    ):
        (tmp_path / "in.lammps").write_text(
            f"units metal\natom_style sphere\nplugin load {plugin}\nregion box block 0 9 0 9 0 9\n"
            f"create_box 1 box\ncreate_atoms 1 single 1 1 1\nset group all diameter 1 density {density[mass]}\n"
            f"pair_style pimlip\npair_coeff * * {exported('nequip')} C\nrun 0\n"
        )
        if reason is None:
            assert "Loop time" in run_lammps(tmp_path / "in.lammps")
        else:
            with pytest.raises(InputError, match=reason):
                run_lammps(tmp_path / "in.lammps")


def test_the_table_tells_every_element_from_those_beside_it(tmp_path):
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("there is no C++ compiler")
    rows = [
        f'{{"{s}", {m!r}}}' for s, m in zip(chemical_symbols[1:], atomic_masses[1:].tolist(), strict=True)
    ]
    (tmp_path / "t.cpp").write_text(
        '#include "pimlip_masses.h"\n#include <cstdio>\nusing namespace pimlip;\n'
        f"const StandardMass ase[] = {{{', '.join(rows)}}};\n"
        """
int main() {
  int wrong = 0;
  for (const auto &a : ase) {
    if (std::abs(standard_mass(a.element) / a.mass - 1) > 1e-9) wrong++;
    for (const auto &b : ase) {
      const bool alike = std::abs(a.mass / b.mass - 1) < 1.1e-3;
      if (!mass_fits(a.mass, a.element, {a.element, b.element})) wrong++;
      if (!alike && mass_fits(a.mass, b.element, {a.element, b.element})) wrong++;
    }
  }
  std::printf("%d", wrong);
}
"""
    )
    include = pimlip_zoo.deploy.lammps.__path__[0]
    subprocess.run([compiler, "-std=c++17", f"-I{include}", "t.cpp", "-o", "t"], cwd=tmp_path, check=True)
    assert subprocess.run([tmp_path / "t"], capture_output=True, text=True, check=True).stdout == "0"
