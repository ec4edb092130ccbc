import pytest

from pimlip_zoo.datasets.readers.spec import parse_spec
from pimlip_zoo.datasets.readers.units import energy_unit, forces_unit, length_unit, stress_unit
from pimlip_zoo.errors import InputError


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.xyz", "b.xyz", "odd,name.xyz", "at@1.xyz", "data.npz"):
        (tmp_path / name).write_text("x")
    return tmp_path


@pytest.mark.parametrize(
    ("spec", "path", "frames"),
    [
        ("a.xyz", "a.xyz", slice(None)),
        ("a.xyz@10:20:2", "a.xyz", slice(10, 20, 2)),
        ("a.xyz@:100", "a.xyz", slice(None, 100)),
        ("a.xyz@-10:", "a.xyz", slice(-10, None)),
        ("a.xyz@3", "a.xyz", slice(3, 4)),
        ("a.xyz@-1", "a.xyz", slice(-1, None)),
        ("odd,name.xyz", "odd,name.xyz", slice(None)),
        ("at@1.xyz", "at@1.xyz", slice(None)),
        ("builtin:ethanol-gfn2/test_300K@5:", "builtin:ethanol-gfn2/test_300K", slice(5, None)),
    ],
)
def test_a_part_is_a_path_with_a_slice(here, spec, path, frames):
    (source,) = parse_spec(spec)
    assert (source.path, source.frames) == (path, frames)


def test_commas_join_parts_and_wildcards_are_sorted(here):
    assert [s.path for s in parse_spec("b.xyz,a.xyz@1:")] == ["b.xyz", "a.xyz"]
    assert [s.path for s in parse_spec("[ab].xyz")] == ["a.xyz", "b.xyz"]


@pytest.mark.parametrize(
    "spec", ["data.npz?energy=kcal/mol&length=Bohr@:5", "data.npz@:5?energy=kcal/mol&length=Bohr"]
)
def test_options_and_slice_stand_in_any_order(here, spec):
    (source,) = parse_spec(spec)
    assert source.frames == slice(None, 5)
    assert (source.options.energy, source.options.length) == ("kcal/mol", "Bohr")


def test_a_sidecar_gives_options_that_the_specification_overrides(here):
    (here / "data.npz.yaml").write_text("energy: kcal/mol\nlength: Bohr\n")
    (source,) = parse_spec("data.npz?length=nm")
    assert (source.options.energy, source.options.length) == ("kcal/mol", "nm")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "a name is missing"),
        ("a.xyz,,b.xyz", "a name is missing"),
        ("c.xyz", "no such file.*did you mean [ab].xyz"),
        ("nowhere/c.xyz", "folder nowhere is not there"),
        ("a.xyz?enrgy=eV", "unknown option 'enrgy'.*energy"),
        ("a.xyz?energy=", "not key=value"),
        ("a.xyz@1:2:0", "step must be positive"),
        ("a.xyz@x", "no slice"),
        ("a.xyz?nan=perhaps", "error or missing"),
    ],
)
def test_a_mistake_is_named(here, spec, message):
    with pytest.raises(InputError, match=message):
        parse_spec(spec)


def test_a_sidecar_with_an_unknown_option_is_refused(here):
    (here / "a.xyz.yaml").write_text("energie: eV\n")
    with pytest.raises(InputError, match=r"a\.xyz\.yaml.*unknown option 'energie'"):
        parse_spec("a.xyz")


def test_units_are_those_of_codata():
    assert energy_unit("kcal/mol") == pytest.approx(0.0433641, rel=1e-6)
    assert energy_unit("hartree") == pytest.approx(27.211386, rel=1e-8)
    assert length_unit("bohr") == pytest.approx(0.529177211, rel=1e-8)
    assert forces_unit("kcal/mol/Å") == pytest.approx(0.0433641, rel=1e-6)
    assert forces_unit("Hartree/Bohr") == pytest.approx(51.4220675, rel=1e-8)
    assert stress_unit("GPa") == pytest.approx(1 / 160.21766, rel=1e-6)
    assert stress_unit("kbar") == pytest.approx(1 / 1602.1766, rel=1e-6)
    assert stress_unit("Hartree/Bohr^3") == pytest.approx(183.63154, rel=1e-6)


@pytest.mark.parametrize("unit", ["kcal/mol", "eV", "eV/parsec"])
def test_what_is_no_unit_of_force_is_refused(unit):
    with pytest.raises(InputError):
        forces_unit(unit)
