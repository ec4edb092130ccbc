"""Errors name the place and the mend, and do not drown the user in names."""

from pimlip_zoo.errors import InputError, did_you_mean, no_such_file


def test_the_message_names_file_frame_key_and_mend():
    error = InputError("is NaN", file="a.xyz", frame=3, key="forces", hint="leave it out")
    assert str(error) == "a.xyz, frame 3, forces: is NaN (leave it out)"
    assert str(InputError("is NaN")) == "is NaN"


def test_the_message_is_one_line_whatever_it_quotes():
    assert str(InputError("says 'a\nb\r\nc'", key="x\ny")) == "x y: says 'a b c'"


def test_near_names_come_first_then_all_if_few_then_their_number():
    assert did_you_mean("nequp", ["nequip", "mace"]) == "did you mean nequip?"
    assert did_you_mean("xyz", ["nequip", "mace"]) == "known: mace, nequip"
    assert did_you_mean("xyz", []) == "none is known"
    assert did_you_mean("xyz", [f"run{i}" for i in range(100)]) == "100 others are known"


def test_a_missing_file_is_named_with_its_nearest_neighbours_alone(tmp_path):
    for name in ("train.extxyz", "other.csv"):
        (tmp_path / name).touch()
    assert str(no_such_file(tmp_path / "trian.extxyz")).endswith("no such file (did you mean train.extxyz?)")
    assert str(no_such_file(tmp_path / "zzz")) == f"{tmp_path / 'zzz'}: no such file"
    assert f"the folder {tmp_path / 'nowhere'} is not there" in str(no_such_file(tmp_path / "nowhere" / "x"))
