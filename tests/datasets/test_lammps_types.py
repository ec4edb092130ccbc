"""Atom types of LAMMPS are no atomic numbers."""

import gzip

import pytest
from ase import Atoms, units
from ase.io import write

from pimlip_zoo.datasets.convert import convert
from pimlip_zoo.datasets.readers import load_frames
from pimlip_zoo.deploy.structure import read_structure
from pimlip_zoo.errors import InputError

HEAD = "ITEM: TIMESTEP\n0\nITEM: NUMBER OF ATOMS\n2\nITEM: BOX BOUNDS pp pp pp\n0 9\n0 9\n0 9\n"
TYPES = HEAD + "ITEM: ATOMS id type x y z\n1 1 0 0 0\n2 1 0 0 2\n"
DATA = "copper\n\n2 atoms\n1 atom types\n\n0 9 xlo xhi\n0 9 ylo yhi\n0 9 zlo zhi\n\n{}"
DATA += "Atoms # atomic\n\n1 1 0 0 0\n2 1 0 0 2\n"


def put(path, text):
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return str(path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("cu.lammpstrj", TYPES),
        ("cu.dump", TYPES),
        ("cu.lammpstrj.gz", TYPES),
        ("cu.lammps-data", DATA.format("")),
    ],
)
def test_files_without_elements_are_refused_wherever_they_are_read(tmp_path, name, text):
    path = put(tmp_path / name, text)
    for read in (read_structure, load_frames, lambda spec: convert(spec, tmp_path / "d.lmdb")):
        with pytest.raises(InputError, match="has numbers of atom types and no"):
            read(path)
    assert {each.name for each in tmp_path.iterdir()} == {name}


def test_a_format_that_is_named_is_looked_at_too(tmp_path):
    path = put(tmp_path / "frames.txt", TYPES)
    with pytest.raises(InputError, match="no elements"):
        load_frames(f"{path}?format=lammps-dump-text")
    with pytest.raises(InputError, match="binary dump of LAMMPS"):
        load_frames(f"{path}?format=lammps-dump-binary")


def test_files_that_tell_the_elements_are_read(tmp_path):
    rows = "1 1 {0} 0 0 0\n2 1 {0} 0 0 2\n"
    texts = {
        "element.lammpstrj": HEAD + "ITEM: ATOMS id type element x y z\n" + rows.format("Cu"),
        "mass.lammpstrj": HEAD + "ITEM: ATOMS id type mass x y z\n" + rows.format("63.546"),
        "cu.lammps-data": DATA.format("Masses\n\n1 63.546\n\n"),
    }
    for name, text in texts.items():
        assert set(read_structure(put(tmp_path / name, text)).symbols) == {"Cu"}
    write(tmp_path / "plain.cif", Atoms("Cu", cell=[3, 3, 3], pbc=True))
    assert read_structure(str(tmp_path / "plain.cif")).get_chemical_formula() == "Cu"
    assert load_frames(str(tmp_path / "element.lammpstrj"))[0].numbers.tolist() == [29, 29]


def test_every_frame_of_a_dump_has_to_tell_them(tmp_path):
    good = HEAD + "ITEM: ATOMS id element x y z\n1 Cu 0 0 0\n2 Al 0 0 2\n"
    with pytest.raises(InputError, match=r"frame 1: this dump of LAMMPS has numbers of atom types"):
        read_structure(put(tmp_path / "joined.lammpstrj", good + TYPES))
    with pytest.raises(InputError, match="frame 1"):
        read_structure(put(tmp_path / "blank.lammpstrj", good + TYPES.replace("ITEM: ATOMS", " ITEM: ATOMS")))
    names, values = "".join(f" c_{k}[1]" for k in range(400)), " 0" * 400
    many = HEAD + f"ITEM: ATOMS id x y z{names} element\n1 0 0 0{values} Cu\n2 0 0 2{values} Al\n"
    assert read_structure(put(tmp_path / "many.lammpstrj", many)).get_chemical_symbols() == ["Cu", "Al"]


def test_forces_of_a_dump_are_labels_and_the_energy_that_ase_gives_it_is_none(tmp_path):
    text = HEAD + "ITEM: ATOMS id element x y z fx fy fz\n1 Cu 0 0 0 0 0 1.5\n2 Cu 0 0 2 0 0 -1.5\n"
    (frame,) = load_frames(put(tmp_path / "a.lammpstrj", text))
    assert frame.energy is None
    assert frame.forces.tolist() == [[0, 0, 1.5], [0, 0, -1.5]]


FULL = HEAD + "ITEM: ATOMS id element x y z fx fy fz\n1 O 1 2 3 0.1 0 0\n2 H 2 2 3 -0.1 0 0\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (FULL + FULL.rpartition("2 H")[0], "frame 1: is cut off: of 2 atoms there are 1 .*head -n 11"),
        (FULL.rpartition("2 H")[0], "frame 0: is cut off"),
        (FULL.rpartition("2 H")[0] + FULL, "frame 0: is cut off"),
        (FULL + "3 H 3 2 3 0 0 0\n", "frame 0: goes on behind its end: of 2 atoms there are 3"),
        (FULL.replace("2 H", "1 H"), "frame 0: has the atom 1 twice"),
        (FULL.replace(" fz", "").replace(" 0\n", "\n"), "has of the forces only fx, fy"),
    ],
)
@pytest.mark.parametrize("name", ["a.lammpstrj", "a.lammpstrj.gz"])
def test_a_dump_that_is_not_whole_is_refused(tmp_path, text, says, name):
    path = put(tmp_path / name, text)
    for read in (read_structure, load_frames):
        with pytest.raises(InputError, match=says):
            read(path)


def test_frames_of_other_numbers_of_atoms_and_columns_are_whole(tmp_path):
    one = (
        FULL.replace("ATOMS\n2", "ATOMS\n1")
        .rpartition("2 H")[0]
        .replace("ITEM: ATOMS id", "ITEM: ATOMS  id ")
    )
    frames = load_frames(put(tmp_path / "a.lammpstrj", one + FULL + "\n" + one))
    assert [len(frame.numbers) for frame in frames] == [1, 2, 1]


@pytest.mark.parametrize(("mass", "said"), [("2.014", True), ("15.999", True), ("1.008", False)])
def test_masses_beside_elements_are_said_to_be_passed_over(tmp_path, caplog, mass, said):
    text = FULL.replace("element", "element mass").replace(" O ", " O 15.999 ").replace(" H ", f" H {mass} ")
    read_structure(put(tmp_path / "a.lammpstrj", text))
    assert (f"not those of the column mass (H {mass})" in caplog.text) is said


def test_that_a_dump_states_no_units_is_said_unless_they_are_named(tmp_path, caplog):
    path = put(tmp_path / "a.lammpstrj", FULL)
    for read in (read_structure, load_frames):
        caplog.clear()
        read(path)
        assert "taken as of LAMMPS' units metal" in caplog.text
    caplog.clear()
    load_frames(f"{path}?energy=kcal/mol")
    load_frames(put(tmp_path / "b.lammpstrj", "ITEM: UNITS\nmetal\n" + FULL))
    assert not caplog.text


def test_units_that_a_file_states_are_its_units(tmp_path):
    columns = (
        "ITEM: ATOMS id element x y z vx vy vz fx fy fz\n1 Cu 0 0 0 0 0 1 0 0 1\n2 Cu 0 0 2 0 0 0 0 0 0\n"
    )
    found = {}
    for name in ("metal", "real"):
        path = put(tmp_path / f"{name}.lammpstrj", f"ITEM: UNITS\n{name}\n" + HEAD + columns)
        found[name] = (load_frames(path)[0].forces[0, 2], read_structure(path).get_velocities()[0, 2])
    assert found["real"][0] == pytest.approx(units.kcal / units.mol, rel=1e-6)
    assert found["real"][1] == pytest.approx(1000 * found["metal"][1], rel=1e-9)
    with pytest.raises(InputError, match="says itself that its units are real"):
        load_frames(f"{path}?energy=kcal/mol")
    with pytest.raises(InputError, match="several units: metal, real"):
        read_structure(put(tmp_path / "b.dump", "".join(each.read_text() for each in tmp_path.iterdir())))
    data = DATA.format("Masses\n\n1 63.546\n\n") + "\nVelocities\n\n1 0 0 1\n2 0 0 0\n"
    for name in ("metal", "real"):
        path = put(tmp_path / "a.lmp", data.replace("copper", f"via write_data, units = {name}"))
        assert read_structure(path).get_velocities()[0, 2] == pytest.approx(found[name][1], rel=1e-9)


def test_a_data_file_is_known_by_its_text_and_its_labels_stay_with_their_atoms(tmp_path, caplog):
    text = (
        "x\n\n3 atoms\n2 atom types\n\n0 9 xlo xhi\n0 9 ylo yhi\n0 9 zlo zhi\n\n"
        "Atom Type Labels\n\n1 Cu\n2 Al\n\nMasses\n\n{}\n\nAtoms # atomic\n\n{}\n"
    )
    masses = "1 63.546\n2 26.98"
    labels = text.format(masses, "3 Cu 0 0 3\n1 Al 0 0 1\n2 Cu 0 0 2")
    numbers = text.replace("Atom Type Labels\n\n1 Cu\n2 Al\n\n", "").format(
        masses, "3 1 0 0 3\n1 2 0 0 1\n2 1 0 0 2"
    )
    for name in ("a.data", "data.a", "a.lmp", "a.lammps-data"):
        at = put(tmp_path / name, numbers)
        structure = read_structure(at)
        assert dict(zip(structure.positions[:, 2], structure.symbols, strict=True)) == {
            1: "Al",
            2: "Cu",
            3: "Cu",
        }
        assert len(load_frames(at)[0].numbers) == 3
        assert caplog.text.count(f"{name}: taken as periodic in all directions") == 2
    structure = read_structure(put(tmp_path / "a.data", labels))
    assert dict(zip(structure.positions[:, 2], structure.symbols, strict=True)) == {1: "Al", 2: "Cu", 3: "Cu"}


@pytest.mark.parametrize(
    ("mass", "symbol"),
    [
        ("1.008", "H"),
        ("1.0", None),
        ("2.014", "H"),
        ("64", "Cu"),
        ("35", "Cl"),
        ("3.024", None),
        ("5.96", None),
        ("15.035", None),
    ],
)
def test_masses_that_are_of_no_element_tell_none(tmp_path, mass, symbol):
    dump = HEAD + f"ITEM: ATOMS id type mass x y z\n1 1 {mass} 0 0 0\n2 1 {mass} 0 0 2\n"
    texts = {"a.lammpstrj": dump, "a.lammps-data": DATA.format(f"Masses\n\n1 {mass} # C1\n\n")}
    for name, text in texts.items():
        path = put(tmp_path / name, text)
        if symbol is not None:
            assert set(read_structure(path).symbols) == {symbol}
            continue
        for read in (read_structure, load_frames):
            with pytest.raises(InputError, match=f"the mass {float(mass):g} is of no element"):
                read(path)
    named = HEAD + f"ITEM: ATOMS id element mass x y z\n1 H {mass} 0 0 0\n2 H {mass} 0 0 2\n"
    assert set(read_structure(put(tmp_path / "named.dump", named)).symbols) == {"H"}


@pytest.mark.parametrize(
    ("comment", "kinds", "refused"),
    [
        ("Atoms. Timestep: 0", "1 2", True),
        ("Atoms. Timestep: 0", "1 1", True),
        ("Atoms. Timestep: 0", "Cu Al", False),
        ("", "1 2", True),
        ("Properties=species:S:1:pos:R:3", "2 1", True),
        ("", "1 1", False),  # hydrogen, for all that is known
        ("water", "1 8", False),
        ("Properties=Z:I:1:pos:R:3", "1 2", False),
    ],
)
def test_types_in_the_first_column_of_an_xyz_file_are_no_elements(tmp_path, comment, kinds, refused):
    first, second = kinds.split()
    path = put(tmp_path / "lmp.xyz", f"2\n{comment}\n{first} 0 0 0\n{second} 0 0 2\n")
    if not refused:
        assert len(load_frames(path)[0].numbers) == 2
        return
    with pytest.raises(InputError, match="frame 0, species: has numbers in the place of elements"):
        load_frames(path)


MASSES = "Masses\n\n1 63.546\n\n"
WHOLE = DATA.format(MASSES)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (WHOLE + "3 1 0 0 4\n", "announces 2 atoms, and its section Atoms has 3 rows"),
        (WHOLE.replace("2 1 0 0 2\n", ""), "announces 2 atoms, and its section Atoms has 1 rows"),
        (WHOLE.replace("2 1 0", "1 1 0"), "has two rows 1 in its section Atoms"),
        (WHOLE.replace("2 atoms", "1 atoms"), "announces 1 atoms, and its section Atoms has 2 rows"),
        (WHOLE.replace("2 atoms\n", "2 atoms\n3 atoms\n"), "says its number of atoms twice"),
        (WHOLE + "\nMasses\n\n1 196.967\n", "has the section Masses twice"),
        (WHOLE + "\nMasses # again\n\n1 196.967\n", "has the section Masses twice"),
        (DATA.format(MASSES.replace("\n\n", "\n\n1 196.967\n", 1)), "has two rows 1 in its section Masses"),
        (
            DATA.format(MASSES.replace("546\n", "546\n2 196.967\n")),
            "announces 1 atom types, and its section Masses",
        ),
        (WHOLE + "\nAtoms # atomic\n\n1 1 0 0 0\n2 1 0 0 2\n", "has the section Atoms twice"),
        (WHOLE + "\nVelocities\n\n1 0 0 0\n2 0 0 1\n\nVelocities\n\n1 0 0 1\n2 0 0 0\n", "Velocities twice"),
        (WHOLE + "\nVelocities\n\n1 0 0 0\n2 0 0 1\n3 0 0 1\n", "its section Velocities has 3 rows"),
        (WHOLE + "\nPair Coeffs\n\n1 1 2\n\nPair Coeffs\n\n1 1 2\n", "has the section Pair Coeffs twice"),
    ],
)
@pytest.mark.parametrize("name", ["cu.lammps-data", "cu.data.gz"])
def test_a_data_file_with_a_part_twice_or_other_numbers_than_it_says_is_refused(tmp_path, name, text, says):
    path = put(tmp_path / name, text)
    for read in (read_structure, load_frames):
        with pytest.raises(InputError, match=says):
            read(path)


def test_a_data_file_with_masses_behind_its_atoms_and_all_its_sections_is_read(tmp_path):
    rest = "\nVelocities\n\n1 0 0 0\n2 0 0 1\n\nMasses # u\n\n1 63.546 # Cu\n\nPair Coeffs\n\n1 1 2\n"
    text = (
        DATA.format("").replace("2 atoms", "2 atoms # all\n1 bonds\n1 bond types")
        + rest
        + "\nBonds\n\n1 1 1 2\n"
    )
    (frame,) = load_frames(put(tmp_path / "cu.data", text))
    assert frame.numbers.tolist() == [29, 29]


def test_masses_of_no_element_are_refused_wherever_their_section_stands(tmp_path):
    text = DATA.format("").replace("2 atoms", "5000 atoms").replace("1 1 0 0 0\n2 1 0 0 2\n", "")
    text += "".join(f"{k} 1 0.0000 0.0000 {k * 1e-3:.6f}\n" for k in range(1, 5001)) + "\nMasses\n\n1 500\n"
    with pytest.raises(InputError, match="the mass 500 is of no element"):
        load_frames(put(tmp_path / "cu.data", text))
