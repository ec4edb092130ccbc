"""Reference values: read strictly, compared in their units, and never dropped without a word."""

import json

import pytest
from ase.build import bulk
from ase.calculators.emt import EMT

from pimlip_zoo.errors import InputError
from pimlip_zoo.physics.examine import Examination, Subject, identity, select
from pimlip_zoo.physics.property import PROPERTIES, Options, Work, register_property
from pimlip_zoo.physics.reference import attach, outside_tolerance, read_reference, reference_of_result
from pimlip_zoo.physics.summary import summarise_values, value_rows


def result(value=3.6, **more):
    values = {"a": {"value": value, "unit": "Å"}, "list": {"value": [1.0, 2.0], "unit": "THz"}}
    lattice = {"status": "computed", "reason": None, "values": values, "doubts": [], "notes": []}
    return {"structures": {"Cu": {"properties": {"lattice": lattice, **more}}}}


def written(tmp_path, text):
    path = tmp_path / "reference.yaml"
    path.write_text(text)
    return path


def attached(tmp_path, text):
    content = result()
    attach(content, read_reference(written(tmp_path, text), {"Cu": {}}))
    json.dumps(content)
    return content, content["structures"]["Cu"]["properties"]["lattice"]


@pytest.mark.parametrize(
    "text", ["lattice: {a: 3.61}", "lattice.a: 3.61", "Cu: {lattice: {a: {value: 3.61, unit: Å}}}"]
)
def test_errors_are_value_less_reference(tmp_path, text):
    content, lattice = attached(tmp_path, text)
    assert lattice["values"]["a"]["reference"] == 3.61
    assert lattice["values"]["a"]["error"] == pytest.approx(-0.01)
    assert lattice["values"]["a"]["within"] is None
    assert outside_tolerance(content) == []


def test_several_numbers_have_the_mean_absolute_error(tmp_path):
    _, lattice = attached(tmp_path, "lattice: {list: [1.5, 1.0]}")
    assert lattice["values"]["list"]["error"] == pytest.approx(0.75)


def test_a_tolerance_is_kept_or_not(tmp_path):
    content, _ = attached(tmp_path, "lattice: {a: {value: 3.61, tolerance: 0.02}}")
    assert outside_tolerance(content) == []
    content, _ = attached(tmp_path, "lattice: {a: {value: 3.61, tolerance: 0.005}}")
    assert outside_tolerance(content) == ["Cu: lattice.a"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("lattice: {a: {value: 3.61, unit: nm, tolerance: 1}}", "its unit is Å, that of the reference nm"),
        ("lattice: {list: {value: [1, 2, 3], tolerance: 1}}", "2 values, the reference 3"),
        ("lattice: {b: {value: 3.61, tolerance: 1}}", "which was not found; found: a, list"),
    ],
)
def test_what_cannot_be_compared_is_said_and_is_outside_of_its_tolerance(tmp_path, text, says):
    content, lattice = attached(tmp_path, text)
    assert any(says in note for note in lattice["notes"])
    assert len(outside_tolerance(content)) == 1
    attach(content, read_reference(written(tmp_path, text), {"Cu": {}}))
    assert len(lattice["notes"]) == 1  # said once


def test_a_reference_of_what_failed_is_outside(tmp_path):
    content = result(elastic={"status": "failed", "reason": "no", "values": {}, "doubts": [], "notes": []})
    attach(content, read_reference(written(tmp_path, "elastic: {C11: {value: 1, tolerance: 5}}"), {"Cu": {}}))
    assert outside_tolerance(content) == ["Cu: elastic.C11"]
    assert content["structures"]["Cu"]["properties"]["elastic"]["values"]["C11"]["value"] is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("latice: {a: 3.61}", "did you mean lattice"),
        ("Cu: {latice: {a: 3.61}}", "did you mean lattice"),
        ("Al: {lattice: {a: 3.61}}", "none of Cu"),
        ("lattice: {a: wide}", "lattice.a: 'wide' is no number"),
        ("lattice: {a: true}", "no number"),
        ("lattice: {a: .nan}", "no number"),
        ("lattice: {a: {value: 3, unti: Å}}", "did you mean unit"),
        ("lattice: {a: {value: 3, tolerance: -1}}", "below 0"),
        ("lattice: 3.61", "no values by name"),
        ("3.61", "no reference values"),
        ("", "no reference values"),
        ("Cu: 3", "neither a property nor a structure"),
    ],
)
def test_wrong_references_are_refused_with_file_and_key(tmp_path, text, says):
    with pytest.raises(InputError, match=says) as error:
        read_reference(written(tmp_path, text), {"Cu": {}})
    assert "reference.yaml" in str(error.value)


def test_an_earlier_result_is_a_reference():
    content = result(3.6)
    attach(content, reference_of_result(result(3.5), source="other"))
    row = content["structures"]["Cu"]["properties"]["lattice"]["values"]["a"]
    assert row["error"] == pytest.approx(0.1)
    assert row["source"] == "other"


def test_tables_count_the_potentials_that_gave_nothing():
    failed = {
        "structures": {"Cu": {"properties": {"lattice": {"status": "failed", "reason": "no", "values": {}}}}}
    }
    first, second = result(3.6), result(3.8)
    for content in (first, second):
        attach(content, reference_of_result(result(3.5), source="x"))
    rows = [row | {"size": 10} for content in (first, second, failed) for row in value_rows(content)]
    by_name = {row["property"]: row for row in summarise_values(rows, ("size",))}
    assert by_name["lattice.a"]["value"] == pytest.approx(3.7)
    assert by_name["lattice.a"]["rms_error"] == pytest.approx((0.05 * 1.0) ** 0.5 * 1.0)
    assert by_name["lattice"] | {} == by_name["lattice"]
    assert by_name["lattice"]["given"] == 0


def test_a_property_of_one_s_own_is_measured_by_its_name():
    class Widths(Options):
        factor: float = 2.0
        """Of the volume."""

    @register_property(
        "test_volume", kinds=("crystal",), cost=lambda task, options: [Work(0, 1)], options=Widths
    )
    def volume(task, options, found):
        """Volume as given."""
        found.add("volume", options.factor * task.structure.get_volume(), "Å³")

    try:
        properties = select(["test_volume"], [("test_volume.factor", 3.0)])
        found = Examination(EMT(), [Subject("Cu", bulk("Cu"))], properties).run()
        values = found["structures"]["Cu"]["properties"]["test_volume"]["values"]
        assert values["volume"]["value"] == pytest.approx(3 * bulk("Cu").get_volume())
        assert PROPERTIES.get("test_volume").description == "Volume as given."
    finally:
        PROPERTIES._items.pop("test_volume")


def test_every_property_says_what_it_is_and_all_its_options_have_a_sentence():
    for one in PROPERTIES.all().values():
        assert one.description.endswith("."), one.name
        for name, field in one.options.model_fields.items():
            assert field.description, f"{one.name}.{name}"


def test_values_of_another_structure_of_the_same_name_are_refused(tmp_path, caplog):
    """As eval --physics leaves them, where the file of the structure has changed."""
    content = result()
    content["structures"]["Cu"] |= identity(bulk("Au"))
    file = tmp_path / "earlier.json"
    file.write_text(json.dumps(content))
    assert read_reference(file, {"Cu": identity(bulk("Au"))})["Cu"]["lattice"]["a"].value == 3.6
    assert not caplog.text
    read_reference(file, {"Cu": identity(bulk("Au", a=4.1))})
    assert "Cu was not exactly this structure" in caplog.text
    with pytest.raises(InputError, match=r"earlier\.json: Cu was another structure .*: Au, not Cu"):
        read_reference(file, {"Cu": identity(bulk("Cu"))})
