"""``lammps input`` replaces what it wrote itself, and nothing that somebody edited or brought along."""

from __future__ import annotations

import pytest
from ase.build import molecule

from pimlip_zoo.deploy.lammps.input import check_own, write_run
from pimlip_zoo.errors import InputError

NOT_OURS = "is there, and is not as this command wrote it"


def written(folder, name="H2O"):
    return write_run(folder, molecule(name), model="a.pimlip", plugin="a.so", species=("H", "C", "O"))


def test_its_own_files_are_replaced(tmp_path):
    for name in ("H2O", "CH4", "H2O"):
        script = written(tmp_path / "run", name)
    text = script.read_text()
    assert text.count("# as written by pimlip-zoo: ") == 1
    assert text == written(tmp_path / "again").read_text()
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"in.lammps", "structure.data"}


@pytest.mark.parametrize("name", ["in.lammps", "structure.data"])
@pytest.mark.parametrize("change", ["edited", "somebody's", "of another run", "alone"])
def test_others_are_not(tmp_path, name, change):
    written(tmp_path)
    written(tmp_path / "other", "CH4")
    place = tmp_path / name
    if change == "edited":
        place.write_text(place.read_text().replace("written", "edited", 1))
    elif change == "of another run":
        place.write_bytes((tmp_path / "other" / name).read_bytes())
    else:
        place.write_text("# my own\n")
    if change == "alone":
        (tmp_path / ("in.lammps" if name == "structure.data" else "structure.data")).unlink()
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    with pytest.raises(InputError, match=NOT_OURS):
        check_own(tmp_path)
    with pytest.raises(InputError, match=NOT_OURS):
        written(tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before
