"""The HTML report needs no other file, shows the numbers it is given, and leaves out what there is none of."""

import base64
import errno
import itertools
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from pimlip_zoo import experiment
from pimlip_zoo.cli.report import _changed, write_run_report
from pimlip_zoo.config import load_config, parse_settings
from pimlip_zoo.datasets.builtin import load_builtin
from pimlip_zoo.errors import InputError
from pimlip_zoo.evaluation import evaluate_run
from pimlip_zoo.report.html import ReportData, render_report, write_report
from pimlip_zoo.report.learning import learning_curves, loss_terms
from pimlip_zoo.report.parity import load_pairs, parity_figure, parity_plot, save_pairs
from pimlip_zoo.written import milli

RNG = np.random.default_rng(0)


def pairs(count=50):
    return {
        name: (values := RNG.normal(size=count), values + 0.01 * RNG.normal(size=count))
        for name in ("energy_per_atom", "forces", "stress")
    }


def errors(value, species=("H", "C")):
    summary = {q: {"mae": value, "rmse": 2 * value} for q in ("energy", "energy_per_atom", "forces")}
    by_species = {s: {"forces": {"mae": value, "rmse": value}} for s in species}
    return {**summary, "stress": None, "n_structures": 1234, "n_atoms": 9, "per_species": by_species}


CURVE = [
    {"step": 10.0 * k, "loss": 1.0 / k, "seconds": float(k)}
    | {f"valid_{q}_{kind}": 1.0 / k for q in ("energy", "forces") for kind in ("mae", "rmse")}
    for k in range(1, 6)
]


def complete():
    return ReportData(
        name="runs/my <b>run</b>",
        facts={"Architecture": "nequip, small", "Steps": "100 of 200"},
        tests={"test & more": errors(0.0123456)},
        curve=CURVE,
        pairs={"test & more": pairs()},
        coverage={
            "training": {
                "structures": 40,
                "atoms": 360,
                "periodic": 3,
                "energy": 40,
                "forces": 12,
                "stress": 0,
            }
        },
        species={"H": (-13.6, 0.8), "C": (-1036.25, 0.8)},
        references="least squares",
        changed={"optimizer.lr": (0.001, 0.01)},
        config="optimizer:\n  lr: 0.001\n",
        versions={"torch": "2.13.0"},
        notes=["something to know"],
    )


class Elements(HTMLParser):
    """Names and attributes of all elements; every one that is opened has to be closed."""

    def __init__(self, text):
        super().__init__()
        self.seen, self.open = [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br", "wbr"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def words(text):
    text = re.sub(r"<style>.*?</style>", "", text, flags=re.DOTALL).replace("<wbr>", "")
    return " ".join(re.sub(r"<[^>]*>", " ", text).split())


def test_the_file_needs_nothing_beside_it():
    seen = Elements(render_report(complete())).seen
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in seen}
    sources = [attrs["src"] for _, attrs in seen if "src" in attrs]
    assert len(sources) == 6  # forces, energies, loss; energies, forces, stress
    assert all(source.startswith("data:image/svg+xml;base64,") for source in sources)
    assert not [attrs for _, attrs in seen if "href" in attrs]
    assert "@import" not in render_report(complete())
    assert "url(" not in render_report(complete())


def test_the_pictures_are_drawings_with_pixels_for_points():
    for _, attrs in Elements(render_report(complete())).seen:
        if "src" in attrs:
            root = ET.fromstring(base64.b64decode(attrs["src"].split(",")[1]))
            assert root.tag.endswith("svg")
            assert attrs["alt"]


def test_the_numbers_are_there_in_milli_units():
    text = words(render_report(complete()))
    assert "test &amp; more 1,234 structures 12.35 24.69 12.35 24.69" in text
    assert "stress MAE" not in text
    assert "training 40 360 3 all 12 –" in text
    assert "C −1036.250000 0.8" in text
    assert "optimizer.lr 0.001 0.01" in text
    assert "100 of 200" in text
    assert "torch 2.13.0" in text
    assert "something to know" in text
    assert "References: least squares." in text


def test_text_is_not_taken_for_markup():
    text = render_report(complete())
    assert "my <b>run</b>" not in text
    assert "my &lt;b&gt;run&lt;/b&gt;" in text


def test_what_there_is_none_of_is_left_out():
    text = words(render_report(ReportData(name="empty")))
    for title in ("Errors", "Learning curves", "Predicted", "Data", "Species", "Configuration", "Versions"):
        assert title not in text
    Elements(render_report(ReportData(name="empty")))


def test_a_set_without_a_label_has_a_dash():
    tests = {"a": errors(0.001), "b": {**errors(0.002), "forces": None, "per_species": {}}}
    text = words(render_report(ReportData(name="x", tests=tests)))
    assert "b 1,234 structures 2.00 4.00 – –" in text


def test_defaults_alone_are_said_to_be_so():
    assert "All options have their defaults." in render_report(ReportData(name="x", config="seed: 0\n"))


def test_a_report_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    file = tmp_path / "report.html"
    write_report(ReportData(name="old"), file)

    def full(path, *arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr("pathlib.Path.write_text", full)
    with pytest.raises(InputError, match=r"report\.html: cannot be written: no space left"):
        write_report(ReportData(name="new"), file)
    assert "old" in file.read_text()
    assert list(tmp_path.iterdir()) == [file]


# ---- pictures


def test_learning_curves_show_what_was_validated():
    stress = [row | {"valid_stress_mae": 0.1, "valid_stress_rmse": 0.2} for row in CURVE]
    assert len(learning_curves(CURVE).axes) == 3
    assert len(learning_curves(stress).axes) == 4
    only_loss = [{"step": row["step"], "loss": row["loss"]} for row in CURVE]
    assert len(learning_curves(only_loss).axes) == 1
    axis = learning_curves(CURVE).axes[0]
    np.testing.assert_allclose(axis.lines[1].get_ydata(), [1000 / k for k in range(1, 6)])
    assert axis.get_yscale() == "log"


def with_terms():
    """Forces beside a consistency loss that warms up from nothing, as ``metrics.csv`` has them."""
    rows = []
    for number, row in enumerate(CURVE):
        values = {"forces": 2.0 / row["step"], "pitc_central": 0.5 * number / row["step"]}
        rows.append(row | {f"loss_{name}": value for name, value in values.items()})
        rows[-1] |= {"weight_forces": 10.0, "factor_forces": 1.0}
        rows[-1] |= {"weight_pitc_central": 0.3, "factor_pitc_central": 0.25 * number}
    return rows


def drawn(axis, label):
    (line,) = [line for line in axis.lines if line.get_label().startswith(label)]
    return line.get_xdata(), line.get_ydata()


def test_each_term_of_the_loss_is_drawn_by_its_value_its_weight_with_the_schedule_and_its_share():
    rows = with_terms()
    values, factors = loss_terms(rows).axes
    shares = learning_curves(rows).axes[-1]
    steps = np.arange(10.0, 60.0, 10.0)
    warming = 0.25 * np.arange(5)
    for axis, forces, weak in (
        (values, 2.0 / steps, 0.5 * np.arange(5) / steps),
        (factors, np.full(5, 10.0), 0.3 * warming),
        (shares, 20.0 / steps, 0.15 * np.arange(5) * warming / steps),
    ):
        np.testing.assert_allclose(drawn(axis, "forces"), (steps, forces), rtol=1e-14)
        # Where the schedule is 0, the term is not evaluated.
        np.testing.assert_allclose(drawn(axis, "pitc central"), (steps[1:], weak[1:]), rtol=1e-14)
    colours = [
        {line.get_label().split(":")[0]: line.get_color() for line in axis.lines} for axis in (values, shares)
    ]
    assert colours[0].items() <= colours[1].items()
    assert [text.get_text() for text in factors.get_legend().get_texts()] == [
        "forces: weight 10",
        "pitc central: weight 0.3",
    ]
    page = render_report(ReportData(name="run", curve=rows))
    assert "The terms of the loss, and what each is multiplied by" in page


def test_terms_without_their_weights_as_earlier_versions_wrote_them_are_not_drawn():
    rows = [row | {"loss_forces": 0.1} for row in CURVE]
    assert loss_terms(rows) is None
    assert [line.get_label() for line in learning_curves(rows).axes[-1].lines] == ["all"]
    assert "The terms of the loss" not in render_report(ReportData(name="run", curve=rows))


def test_a_parity_plot_says_the_errors_of_its_points_or_those_that_it_is_given():
    values = {"forces": (np.zeros(4), np.array([0.001, -0.001, 0.003, -0.003]))}
    (text,) = parity_figure(values).axes[0].texts
    assert text.get_text() == "MAE 2.00 meV/Å\nRMSE 2.24 meV/Å"
    (text,) = parity_figure(values, errors={"forces": {"mae": 0.1, "rmse": 0.2}}).axes[0].texts
    assert text.get_text() == "MAE 100.00 meV/Å\nRMSE 200.00 meV/Å"


def test_ticks_of_total_energies_neither_overlap_nor_hide_their_first_digits():
    reference = np.linspace(-626.103, -626.089, 7)
    figure = parity_figure({"energy_per_atom": (reference, reference + 1e-4)})
    FigureCanvasAgg(figure).draw()
    top, bottom = figure.axes
    for axis in (top.yaxis, bottom.xaxis):
        assert axis.get_offset_text().get_text() == ""
        assert all("626." in label.get_text() for label in axis.get_ticklabels())
    boxes = [label.get_window_extent() for label in bottom.get_xticklabels() if label.get_text()]
    assert len(boxes) >= 2
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))


def test_the_panel_of_errors_shows_the_largest_unless_it_is_far_beyond_all_others():
    reference = np.linspace(-1.0, 1.0, 11)
    few = parity_figure({"forces": (reference, reference + 1e-3 * np.arange(11.0))})
    assert few.axes[1].get_ylim()[1] > 10.0
    reference = np.linspace(-1.0, 1.0, 10_000)
    error = 1e-3 * reference
    error[-1] = 1.0
    assert 1.0 < parity_figure({"forces": (reference, reference + error)}).axes[1].get_ylim()[1] < 3.0


@pytest.mark.parametrize("count", [1, 3])
def test_few_and_equal_values_can_be_drawn(tmp_path, count):
    values = {"energy_per_atom": (np.full(count, -34.0), np.full(count, -34.0))}
    for suffix in (".png", ".svg", ".pdf"):
        parity_plot(values, tmp_path / f"parity{suffix}")
        assert (tmp_path / f"parity{suffix}").stat().st_size > 1000
    with pytest.raises(InputError, match="cannot draw"):
        parity_plot(values, tmp_path / "parity.bmp")


def test_pairs_are_kept_exactly_and_of_many_a_part(tmp_path):
    sets = {"one, with a comma": pairs(), "zwei": {"forces": pairs(5000)["forces"]}}
    save_pairs(sets, tmp_path / "pairs.npz", most=1000)
    loaded = load_pairs(tmp_path / "pairs.npz")
    assert list(loaded) == list(sets)
    for quantity, values in sets["one, with a comma"].items():
        np.testing.assert_array_equal(loaded["one, with a comma"][quantity], values)
    reference, predicted = loaded["zwei"]["forces"]
    assert len(reference) == 1000
    whole = dict(zip(*sets["zwei"]["forces"], strict=True))
    assert all(whole[r] == p for r, p in zip(reference, predicted, strict=True))


# ---- of a run


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    settings = [
        "data.train=builtin:ethanol-gfn2/train@:20",
        "data.valid=builtin:ethanol-gfn2/valid@:5",
        "data.test=builtin:ethanol-gfn2/test_300K@:6",
        "model.channels=4",
        "trainer.max_steps=4",
        "trainer.valid_every=2",
    ]
    folder = tmp_path_factory.mktemp("runs") / "reported"
    experiment.train(experiment.prepare(load_config(None, parse_settings(settings))), folder)
    return folder


def test_the_report_of_a_run_evaluates_what_the_training_did_not_get_to(trained):
    text = words(write_run_report(trained).read_text())
    assert "reported" in text
    assert "builtin:ethanol-gfn2/test_300K@:6 6 structures " in text
    assert "validation 5 " in text
    assert "training 20 180 0 all all –" in text
    assert "model.channels 4 16" in text
    assert "trainer.max_steps 4 " in text
    assert "Steps 4 " in text
    assert "isolated atoms" in text
    assert (trained / "test.json").exists()
    assert (trained / "parity.npz").exists()


def test_an_unfinished_run_says_so(trained, tmp_path):
    import shutil

    run = shutil.copytree(trained, tmp_path / "half")
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("max_steps: 4", "max_steps: 9000"))
    assert "Steps 4 of 9,000" in words(write_run_report(run).read_text())


def test_data_that_are_gone_are_a_note(trained, tmp_path):
    import shutil

    run = shutil.copytree(trained, tmp_path / "moved")
    for name in ("test.json", "parity.npz"):
        (run / name).unlink(missing_ok=True)
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("builtin:ethanol-gfn2/test_300K@:6", "/nowhere/test.extxyz"))
    text = words(write_run_report(run).read_text())
    assert "Not evaluated: /nowhere/test.extxyz: no such file" in text
    assert "Learning curves" in text


def test_a_checkpoint_alone_is_no_run_folder(trained):
    with pytest.raises(InputError, match="is no run folder"):
        write_run_report(trained / "checkpoints" / "best.ckpt")


def test_only_what_differs_from_the_defaults_counts_as_changed(trained):
    assert _changed(load_config(None).model_dump(mode="json")) == {}
    changed = _changed(
        load_config(None, [("model.preset", "large"), ("model.channels", 8)]).model_dump(mode="json")
    )
    assert changed == {"model.preset": ("large", "small"), "model.channels": (8, 64)}


def test_the_report_says_what_the_recipe_chose_and_lists_it_last():
    data = ReportData(
        name="x", changed={"optimizer.lr": (0.003, 0.01), "seed": (1, 0)}, filled=frozenset({"optimizer.lr"})
    )
    html = render_report(data).replace("<wbr>", "")
    assert "chosen by the recipe" in html
    assert html.index(">seed<") < html.index(">optimizer.lr<")


@pytest.mark.parametrize(
    ("value", "text"), [(0.01234, "12.34"), (2.34e-5, "0.023"), (0.0, "0.00"), (-3.1e-8, "-3.1e-05")]
)
def test_a_small_error_keeps_two_digits(value, text):
    assert milli(value) == text


def test_a_potential_that_has_not_learnt_is_called_so_and_no_unit_is_blamed(trained, monkeypatch, caplog):
    monkeypatch.setattr("pimlip_zoo.evaluation.remarks_on", lambda _: ["the labelled forces are ... (units)"])
    frames = load_builtin("ethanol-gfn2")[:3]
    evaluate_run(trained, {}, {"training": frames, "validation": frames})
    said = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert len(said) == 1
    assert "has hardly learnt yet" in said[0]
    caplog.clear()
    evaluate_run(trained, {}, {"validation": frames})
    assert "validation: the labelled forces" in caplog.text


def test_errors_in_the_report_are_those_of_eval(trained):
    from pimlip_zoo.evaluation import evaluate
    from pimlip_zoo.training.checkpoint import load_potential

    spec = "builtin:ethanol-gfn2/test_300K@:6"
    summary = evaluate_run(trained, {"test": spec})["test"]
    expected = evaluate(load_potential(trained), spec).summary
    assert summary["forces"] == expected["forces"]
    np.testing.assert_allclose(
        np.abs(np.subtract(*load_pairs(trained / "parity.npz")["test"]["forces"])).mean(),
        expected["forces"]["mae"],
        rtol=1e-12,
    )
