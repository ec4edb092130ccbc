"""What LAMMPS changes of atoms, boxes and lists while it runs: energies and forces are those of Python, or refused."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from toys import SPECIES, geometries, potential_of, predict, relative

from pimlip_zoo.deploy.lammps.data import write_data
from pimlip_zoo.deploy.lammps.run import run_lammps
from pimlip_zoo.errors import InputError

pytestmark = [pytest.mark.slow, pytest.mark.parametrize("file_format", ["native"], indirect=True)]

SCRIPT = """units metal
atom_style {atom_style}
{before}
plugin load {plugin}
{read}
{masses}
pair_style pimlip {options}
pair_coeff * * {model} {elements}
velocity all create 600 4711
timestep 0.0005
{settings}
{run}
dump rows all custom 1 rows.txt id type x y z fx fy fz
dump_modify rows sort id format float %.17g
variable xy equal xy
variable xz equal xz
variable yz equal yz
run 0
print "$(pe:%.17g) $(lx:%.17g) $(ly:%.17g) $(lz:%.17g) {tilts}" file state.txt
"""


@pytest.fixture
def ends(tmp_path, plugin, exported):
    """Runs a script; energy and forces of LAMMPS at its end, and of Python for the same atoms."""

    def start(settings="", *, ranks=1, model="nequip", arguments=(), **pieces):
        write_data(tmp_path / "structure.data", geometries()["a skewed triclinic cell"], SPECIES)
        values = {
            "atom_style": "atomic",
            "before": "",
            "read": "read_data structure.data",
            "masses": "",
            "options": "",
            "elements": "H C O",
            "plugin": plugin,
            "model": exported(model),
            "settings": settings,
            "run": "fix 1 all nve\nrun 20",
            "tilts": "$(xy:%.17g) $(xz:%.17g) $(yz:%.17g)",
        } | pieces
        (tmp_path / "in.lammps").write_text(SCRIPT.format(**values))
        said = run_lammps(tmp_path / "in.lammps", ranks=ranks)
        energy, lx, ly, lz, xy, xz, yz = map(float, (tmp_path / "state.txt").read_text().split())
        last = (tmp_path / "rows.txt").read_text().split("ITEM: ATOMS")[-1].splitlines()[1:]
        rows = np.array([line.split() for line in last], dtype=float)
        atoms = Atoms(
            [SPECIES[int(kind) - 1] for kind in rows[:, 1]],
            positions=rows[:, 2:5],
            cell=[[lx, 0, 0], [xy, ly, 0], [xz, yz, lz]],
            pbc=True,
        )
        expected = predict(potential_of(model), atoms)
        assert relative(energy, expected[0]) < 1e-9
        assert relative(rows[:, 5:8], expected[1]) < 1e-8
        return said, atoms

    return start


SETTINGS = {
    "lists without a skin": "neighbor 0.0 bin",
    "lists by all pairs": "neighbor 1.0 nsq",
    "lists of many cutoffs": "neighbor 1.0 multi",
    "sorted atoms": "atom_modify sort 1 3.0",
    "a box that is deformed and flips": "fix 2 all deform 1 xy erate 20 remap x flip yes units box",
    "a box that gets smaller": "fix 2 all deform 1 x scale 0.9 y scale 0.9 z scale 0.9 remap x",
    "pressure on the box": "fix 2 all nph tri 50000 50000 0.1",
    "atoms that change their type": "set group all type/fraction 2 0.5 77",
}


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("name", SETTINGS)
def test_settings_that_change_lists_and_boxes(name, ranks, ends):
    if name == "lists of many cutoffs" and ranks == 2:
        with pytest.raises(
            InputError, match="LAMMPS stopped: ERROR: Requested neighbor stencil"
        ):  # its own word
            ends(SETTINGS[name], ranks=ranks)
        return
    run = "run 20" if "nph" in SETTINGS[name] else "fix 1 all nve\nrun 20"
    _, atoms = ends(SETTINGS[name], ranks=ranks, run=run)
    assert len(atoms) == 24


def test_ranks_that_share_the_box_in_tiles(ends):
    run = "replicate 2 3 3\ncomm_style tiled\nbalance 1.0 rcb\nfix 1 all nve\nfix 3 all balance 5 1.0 rcb\nrun 20"
    ends(ranks=2, run=run)


def test_types_that_are_swapped_by_monte_carlo(ends):
    run = "fix 1 all atom/swap 1 20 5 2000 ke no types 1 3\nrun 20"
    said, _ = ends(run=run)
    assert "Loop time" in said


def test_atoms_that_are_put_in_and_taken_out(ends):
    run = "fix 1 all nve\nrun 5\ndelete_atoms group gone\nrun 5\ncreate_atoms 1 single 1.0 1.2 1.1 units box\nrun 0"
    ends("group gone id 3 7", run=run, model="nequip")


def test_boxes_that_are_changed_and_repeated_between_runs(ends):
    run = "run 0\nchange_box all x scale 1.1 remap\nrun 0\nreplicate 2 1 1\nrun 0"
    _, atoms = ends(run=run)
    assert len(atoms) == 48


def test_frames_that_are_read_again(ends):
    run = "dump d all custom 5 d.txt id type x y z\nfix 1 all nve\nrun 20\nundump d\n"
    run += "rerun d.txt first 10 last 10 dump x y z"
    ends(run=run)


def test_forces_are_those_of_finite_differences_and_pressure_those_of_the_box(ends):
    run = (
        "fix n all numdiff 1 1e-5\nfix v all numdiff/virial 1 1e-5\ncompute pr all pressure NULL virial\n"
        "variable d atom abs(fx-f_n[1])+abs(fy-f_n[2])+abs(fz-f_n[3])\ncompute worst all reduce max v_d\n"
        "thermo_style custom step pe c_pr[1] f_v[1] c_pr[4] f_v[6] c_worst\nthermo_modify format float %.12g\nrun 0\n"
        'print "worst $(c_worst:%.3e) $(c_pr[1]-f_v[1]:%.3e) $(c_pr[4]-f_v[6]:%.3e)"\n'
        "unfix n\nunfix v\nthermo_style one\n"
    )
    said, _ = ends(run=run, before="atom_modify map array")
    worst = [
        float(x) for x in next(line for line in said.splitlines() if line.startswith("worst ")).split()[1:]
    ]
    assert worst[0] < 1e-5
    assert max(map(abs, worst[1:])) < 5.0  # bar


@pytest.mark.parametrize("compute", ["force/tally rest", "heat/flux/tally rest", "stress/tally rest"])
def test_computes_that_are_fed_by_pairs_are_refused_also_after_a_run(compute, ends):
    with pytest.raises(InputError, match="does not feed compute"):
        ends("group rest id 1:6", run=f"run 0\ncompute t all {compute}\nrun 0")


def test_masses_of_atoms_that_a_fix_brings_are_looked_at(ends):
    masses = "set type 1 mass 1.008\nset type 2 mass 12.011\nset type 3 mass 15.999"
    given = "fix m all property/atom rmass ghost yes\n"
    ends(masses=given + masses)
    with pytest.raises(
        InputError, match=r"pair_coeff calls atom type 1 O, whose mass is 15.999, and its mass is 1.008"
    ):
        ends(masses=given + masses, elements="O C H")
    # masses of the types fit, those of the atoms do not
    with pytest.raises(
        InputError, match=r"calls atom type 3 O, whose mass is 15.999, and its mass is 12.011"
    ):
        ends(masses=given + masses + "\nset type 3 mass 12.011")


def test_the_order_is_looked_at_before_every_run(ends):
    with pytest.raises(
        InputError, match=r"calls atom type 2 C, whose mass is 12.011, and its mass is 15.999"
    ):
        ends(run="run 0\nmass 2 15.999\nmass 3 12.011\nrun 0")


def test_a_restart_needs_the_order_again_and_it_is_looked_at(ends, plugin, exported):
    run = f"run 0\nwrite_restart a.restart\nclear\nplugin load {plugin}\nread_restart a.restart\npair_style pimlip\n"
    for elements in ("C H O", "O C H"):
        with pytest.raises(InputError, match=r"pair_coeff calls atom type 1"):
            ends(run=f"{run}pair_coeff * * {exported('nequip')} {elements}\nrun 0")
