"""What a potential cannot give is said, and why; nothing is made up."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.emt import EMT
from calculators import Repulsion

from pimlip_zoo.datasets.builtin import load_builtin
from pimlip_zoo.errors import InputError
from pimlip_zoo.physics.coverage import Coverage, coverage_of
from pimlip_zoo.physics.examine import Examination, Subject, select


class NotANumber(EMT):
    """Numbers up to a strain."""

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        if self.atoms.get_volume() / len(self.atoms) > 12.0:
            self.results["energy"] = float("nan")


class EnergyAlone(Calculator):
    implemented_properties = ("energy", "forces")

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        self.results = {"energy": 0.0, "forces": np.zeros((len(self.atoms), 3))}


def test_an_unstable_crystal_is_called_so(measured):
    simple = measured(
        EMT(),
        bulk("Cu", "sc", a=2.4),
        "elastic",
        "phonons",
        settings=[("phonons.width", 4.0), ("phonons.points", 20)],
    )
    elastic, phonons = simple["elastic"], simple["phonons"]
    assert elastic["status"] == phonons["status"] == "doubtful"
    assert any("mechanically unstable" in doubt for doubt in elastic["doubts"])
    assert any("dynamically unstable" in doubt for doubt in phonons["doubts"])
    assert elastic["values"]["lowest_eigenvalue"]["value"] < 0
    assert "young_modulus" not in elastic["values"]
    assert "zero_point_energy" not in phonons["values"]


def test_what_does_not_relax_has_no_properties_and_every_one_says_why(measured):
    result = measured(Repulsion(), bulk("Cu"), "lattice", "elastic", "vacancy")
    for one in result.values():
        assert one["status"] == "failed"
        assert "does not relax" in one["reason"]
        assert one["values"] == {}
    assert result["vacancy"]["evaluations"] == 0  # the failure is known, not repeated


def test_energies_that_are_no_numbers_end_a_property_and_not_the_others(measured):
    result = measured(NotANumber(), bulk("Cu", a=3.58), "lattice", "equation_of_state", "elastic")
    assert result["lattice"]["status"] == "computed"
    assert result["equation_of_state"]["status"] == "failed"
    assert "not a number" in result["equation_of_state"]["reason"]
    assert result["elastic"]["status"] == "computed"


def test_a_calculator_without_stress_has_no_elastic_constants(measured):
    result = measured(EnergyAlone(), bulk("Cu"), "lattice", "elastic")
    assert result["elastic"] == {"status": "not applicable", "reason": "the calculator has no stress"}
    assert result["lattice"]["status"] == "failed"


def test_compounds_have_no_vacancy_and_no_surface_energy(measured):
    alloy = bulk("Cu", cubic=True)
    alloy.symbols[0] = "Al"
    result = measured(EMT(), alloy, "lattice", "vacancy", "surfaces")
    assert result["lattice"]["status"] == "computed"
    for name in ("vacancy", "surfaces"):
        assert result[name]["status"] == "not applicable"
        assert "compound" in result[name]["reason"]


def test_atoms_nearer_than_in_the_training_data_are_an_extrapolation(measured):
    found = measured(EMT(), bulk("Cu"), "lattice", "bonds", coverage=Coverage({(29, 29): 2.5}))
    assert found["lattice"]["status"] == "computed"
    assert found["bonds"]["status"] == "doubtful"
    (doubt,) = [text for text in found["bonds"]["doubts"] if text.startswith("extrapolates")]
    assert "Cu and Cu come as close as 2.24 Å, in the training data only 2.50 Å" in doubt
    inside = measured(EMT(), bulk("Cu"), "bonds", coverage=Coverage({(29, 29): 2.0}))
    assert inside["bonds"]["status"] == "computed"


def test_the_coverage_is_that_of_the_nearest_atoms():
    frames = load_builtin("cual-emt/valid")
    nearest = min(
        frame_distance
        for frame in frames
        for frame_distance in [_shortest(frame)]
        if frame_distance is not None
    )
    assert coverage_of(frames).nearest[29, 29] == pytest.approx(nearest)
    assert coverage_of([]).nearest == {}


def _shortest(frame):
    from ase.neighborlist import neighbor_list

    atoms = Atoms(numbers=frame.numbers, positions=frame.positions, cell=frame.cell, pbc=frame.pbc)
    i, j, d = neighbor_list("ijd", atoms, 5.0)
    copper = (frame.numbers[i] == 29) & (frame.numbers[j] == 29)
    return d[copper].min() if copper.any() else None


def test_stopping_keeps_what_was_computed():
    count = 0

    def tick():
        nonlocal count
        count += 1

    saved = []
    examination = Examination(
        EMT(),
        [Subject("it", bulk("Cu"))],
        select(["lattice", "elastic", "vacancy"], []),
        stop=lambda: count >= 10,
        tick=tick,
    )
    result = examination.run(lambda each: saved.append({**each["structures"]["it"]["properties"]}))
    found = result["structures"]["it"]["properties"]
    assert result["stopped"]
    assert [one["status"] for one in found.values()] == ["computed", "stopped", "not reached"]
    assert found["lattice"]["values"]["a"]["value"] == pytest.approx(3.5898, abs=1e-3)
    assert saved[0]["lattice"]["status"] == "computed"
    assert saved[0]["elastic"]["status"] == "not reached"
    assert saved[-1] == found


def test_a_property_that_breaks_down_keeps_what_it_found(measured):
    # The first surfaces fit, a steep one is too large.
    found = measured(
        EMT(),
        bulk("Cu"),
        "surfaces",
        settings=[("surfaces.miller", [[1, 0, 0], [9, 8, 7]]), ("surfaces.most_atoms", 60)],
    )["surfaces"]
    assert found["status"] == "doubtful"
    assert "energy_100" in found["values"]
    assert any("(987)" in doubt and "surfaces.most_atoms" in doubt for doubt in found["doubts"])


@pytest.mark.parametrize(
    ("subject", "says"),
    [
        (Subject("x", Atoms()), "no atoms"),
        (Subject("x", bulk("Fe")), "does not compute"),
        (Subject("x", Atoms("Cu", pbc=True)), "no cell vector"),
        (Subject("x", bulk("Cu"), end=bulk("Cu", cubic=True)), "other atoms"),
        (Subject("x", bulk("Cu"), end=bulk("Cu", a=4)), "another cell"),
        (Subject("x", molecule("H2O"), end=molecule("H2O")[[1, 0, 2]]), "another order"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is(subject, says):
    with pytest.raises(InputError, match=says):
        Examination(EMT(), [subject], select(["lattice", "neb"], []))


@pytest.mark.parametrize(
    ("names", "settings", "says"),
    [
        (["latice"], [], "lattice"),
        (None, [("elastic.strian", 0.1)], "did you mean strain"),
        (None, [("elastic.strain", -1)], "elastic.strain"),
        (None, [("elastic", 1)], "OPTION=VALUE"),
        (["lattice"], [("elastic.strain", 0.01)], "not measured"),
    ],
)
def test_wrong_requests_are_refused_with_the_key(names, settings, says):
    with pytest.raises(InputError, match=says):
        select(names, settings)
