"""Settings that take atoms or pairs out of LAMMPS' neighbour lists are right or refused, never silently wrong."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from toys import SPECIES, geometries, potential_of, predict, relative

from pimlip_zoo.deploy.lammps.data import write_data
from pimlip_zoo.deploy.lammps.run import run_lammps
from pimlip_zoo.errors import InputError

pytestmark = pytest.mark.parametrize("file_format", ["native"], indirect=True)

SCRIPT = """units metal
atom_style {atom_style}
{modify}
newton on
plugin load {plugin}
{read}
pair_style {style}
pair_coeff {coeff}
{settings}
thermo_style custom step atoms pe
thermo_modify format float %.17g
dump rows all custom 1 rows.txt id fx fy fz
dump_modify rows sort id format float %.17g
run 0
print "$(pe:%.17g)" file energy.txt
"""


@pytest.fixture
def run(tmp_path, plugin, exported):
    """Runs the script with settings of its own; returns energy and forces."""

    def start(settings, *, ranks=1, atoms=None, coeff="* * {model} H C O", **pieces):
        write_data(tmp_path / "structure.data", atoms or geometries()["a skewed triclinic cell"], SPECIES)
        values = {
            "atom_style": "atomic",
            "modify": "",
            "read": "read_data structure.data",
            "style": "pimlip",
            "plugin": plugin,
            "coeff": coeff.format(model=exported("nequip")),
            "settings": settings,
        } | pieces
        (tmp_path / "in.lammps").write_text(SCRIPT.format(**values))
        run_lammps(tmp_path / "in.lammps", ranks=ranks)
        return float((tmp_path / "energy.txt").read_text()), np.loadtxt(tmp_path / "rows.txt", skiprows=9)[
            :, 1:
        ]

    return start


@pytest.mark.parametrize(
    "exclusion",
    ["exclude group gone all", "exclude group all gone", "exclude group gone all exclude group gone gone"],
)
@pytest.mark.parametrize("ranks", [1, 2])
def test_atoms_that_are_excluded_from_everything_are_not_there(exclusion, ranks, run):
    atoms = geometries()["a skewed triclinic cell"]
    gone = [3, 11, 12]
    ids = " ".join(str(i + 1) for i in gone)
    energy, forces = run(f"group gone id {ids}\nneigh_modify {exclusion}", ranks=ranks)
    rest = np.setdiff1d(np.arange(len(atoms)), gone)
    expected = predict(potential_of("nequip"), atoms[rest])
    assert relative(energy, expected[0]) < 1e-10  # not even with their reference energies
    assert relative(forces[rest], expected[1]) < 1e-10
    assert np.abs(forces[gone]).max() == 0.0


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ("group part id 1:6\nneigh_modify exclude group part part", "exclude group` leaves out pairs"),
        (
            "group part id 1:6\ngroup rest subtract all part\nneigh_modify exclude group part rest",
            "exclude group` leaves out pairs",
        ),
        ("neigh_modify exclude type 1 3", "exclude type 1 3` leaves out pairs"),
    ],
)
@pytest.mark.parametrize("ranks", [1, 2])
def test_pairs_that_are_left_out_are_refused(settings, reason, ranks, run):
    with pytest.raises(InputError, match=f"{reason}.*has to see all neighbors"):
        run(settings, ranks=ranks)


def test_leaving_out_pairs_of_molecules_is_refused(run):
    box = "region box block 0 9 0 9 0 9\ncreate_box 3 box\ncreate_atoms 1 single 1 1 1\ncreate_atoms 2 single 2 1 1\n"
    box += "mass 1 1.008\nmass 2 12.011\nmass 3 15.999\nset group all mol 1"
    with pytest.raises(InputError, match="exclude molecule` leaves out pairs"):
        run(
            "special_bonds lj/coul 1 1 1\nneigh_modify exclude molecule/intra all",
            read=box,
            atom_style="molecular",
        )


def test_lists_and_ghosts_of_one_group_are_refused(run):
    settings = "group part id 1:6\natom_modify first part\nneigh_modify include part"
    with pytest.raises(InputError, match="neigh_modify include` leaves out"):
        run(settings)
    with pytest.raises(InputError, match="comm_modify group` leaves out ghost atoms"):
        run("group part id 1:6\natom_modify first part\ncomm_modify group part")


def test_exclusions_that_concern_nobody_change_nothing(run):
    energy, _ = run("group none empty\nneigh_modify exclude group none none exclude group none all")
    assert (
        relative(energy, predict(potential_of("nequip"), geometries()["a skewed triclinic cell"])[0]) < 1e-10
    )


def test_pairs_that_a_hybrid_gives_to_another_style_are_refused(run):
    styles = "hybrid pimlip lj/cut 3.0"
    with pytest.raises(InputError, match="atom types 1 and 2 belong to another pair style"):
        run("pair_coeff 1 2 lj/cut 0.01 1.5", style=styles, coeff="* * pimlip {model} H C O")
    with pytest.raises(InputError, match=r"atom types (1 and 1|2 and 2) belong to another pair style"):
        run(
            "pair_coeff 1 1 lj/cut 0.01 1.5\npair_coeff 2 2 none",
            style=styles,
            coeff="* * pimlip {model} H C O",
        )


def test_an_ideal_gas_of_the_grand_canonical_ensemble_has_its_density(tmp_path, plugin, exported):
    # Atoms that never meet, each with the energy E0: <N> = V / λ³ exp((μ - E0) / kT), a Poisson distribution.
    length, temperature, target, mass = 200.0, 20000.0, 6.0, 1.008
    kt = 8.617333262e-5 * temperature
    write_data(tmp_path / "gas.data", Atoms("H", positions=[[9, 9, 9]], cell=[length] * 3, pbc=True), SPECIES)
    alone = predict(potential_of("nequip"), Atoms("H", positions=[[0, 0, 0]]))[0]
    wavelength = (
        6.62607015e-34 / np.sqrt(2 * np.pi * mass * 1.66053907e-27 * 1.380649e-23 * temperature) * 1e10
    )
    chemical = kt * np.log(target * np.exp(alone / kt) * wavelength**3 / length**3)
    script = f"""units metal
atom_style atomic
plugin load {plugin}
read_data gas.data
pair_style pimlip
pair_coeff * * {exported("nequip")} H C O
group gas type 1
variable n equal count(gas)
fix exchange gas gcmc 1 10 0 1 4711 {temperature} {chemical:.12g} 1.0 full_energy
fix numbers all ave/time 1 1 1 v_n file n.txt
run 800
"""
    (tmp_path / "in.lammps").write_text(script)
    run_lammps(tmp_path / "in.lammps")
    numbers = np.loadtxt(tmp_path / "n.txt")[80:, 1]
    error = numbers[: len(numbers) // 10 * 10].reshape(10, -1).mean(1).std(ddof=1) / np.sqrt(10)
    assert error < 0.4
    assert abs(numbers.mean() - target) < max(4 * error, 0.5)
    assert abs(alone) > 0.5 * kt  # an E0 that were counted twice or not at all would be seen


@pytest.mark.parametrize(
    "change", ["group gone clear", "group gone id 5", "group gone clear\ngroup gone id 7"]
)
@pytest.mark.parametrize("ranks", [1, 2])
def test_who_is_absent_is_who_the_lists_lack_until_they_are_built_again(change, ranks, run, tmp_path):
    atoms = geometries()["a skewed triclinic cell"]
    settings = f"group gone id 4\nneigh_modify exclude group gone all\nrun 0\n{change}\nrun 1 pre no\n"
    energy, _ = run(f'{settings}print "$(pe:%.17g)" file kept.txt', ranks=ranks)
    built_again = {"group gone clear": [], "group gone id 5": [3, 4]}.get(change, [6])
    kept = float((tmp_path / "kept.txt").read_text())
    for found, gone in ((kept, [3]), (energy, built_again)):
        rest = np.setdiff1d(np.arange(len(atoms)), gone)
        assert relative(found, predict(potential_of("nequip"), atoms[rest])[0]) < 1e-10


def test_atoms_on_one_spot_are_named(run):
    atoms = geometries()["a skewed triclinic cell"]
    atoms.positions[6] = atoms.positions[2]
    with pytest.raises(InputError, match=r"atoms (3 and 7|7 and 3) are on one spot"):
        run("", atoms=atoms)
