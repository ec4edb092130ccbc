"""The configuration is typed: unknown keys and wrong values are one-line errors that help."""

import pytest
import yaml

from pimlip_zoo.config import RunConfig, load_config, parse_settings, save_config
from pimlip_zoo.errors import InputError


def test_the_defaults_train_nequip_on_built_in_data():
    config = load_config(None)
    assert config.model.name == "nequip"
    assert config.data.train == "builtin:ethanol-gfn2"


def test_a_saved_configuration_is_complete_and_reads_back_equal(tmp_path):
    config = load_config(
        None, parse_settings(["model.channels=7", "optimizer.lr=1e-3", "trainer.max_time=10m"])
    )
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config
    content = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert set(content) == set(RunConfig.model_fields)
    assert content["trainer"].keys() == config.trainer.model_dump().keys()


def test_single_settings_win_over_the_file(tmp_path):
    (tmp_path / "run.yaml").write_text("optimizer: {lr: 0.5}\nseed: 3\n")
    config = load_config(tmp_path / "run.yaml", parse_settings(["optimizer.lr=0.25"]))
    assert (config.optimizer.lr, config.seed) == (0.25, 3)


def test_a_table_of_a_section_changes_the_keys_that_it_has_and_no_other(tmp_path):
    (tmp_path / "run.yaml").write_text("trainer: {dtype: float64, max_steps: 7}\nmodel: {name: allegro}\n")
    settings = [
        "trainer={max_steps: 9}",
        "trainer.patience=3",
        "model={scalar_channels: 8}",
        "optimizer={lr: 1e-3}",
    ]
    config = load_config(tmp_path / "run.yaml", parse_settings(settings))
    assert (config.trainer.dtype, config.trainer.max_steps, config.trainer.patience) == ("float64", 9, 3)
    assert (config.model.name, config.model.configure().scalar_channels) == ("allegro", 8)
    assert config.optimizer.lr == 1e-3
    save_config(config, tmp_path / "config.yaml")
    resumed = load_config(None, parse_settings(["trainer={max_steps: 11}"]), onto=tmp_path / "config.yaml")
    assert (resumed.trainer.dtype, resumed.trainer.max_steps, resumed.trainer.patience) == ("float64", 11, 3)
    references = load_config(
        None, parse_settings(["data.energy_references={H: -1.0}"])
    ).data.energy_references
    assert references == {"H": -1.0}


def test_options_of_the_architecture_stand_beside_its_name():
    config = load_config(
        None, parse_settings(["model.channels=7", "model.radial_hidden=[3, 4]", "model.cutoff=4"])
    )
    options = config.model.configure()
    assert (options.channels, options.radial_hidden, options.cutoff) == (7, (3, 4), 4.0)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("optimiser.lr=1", "did you mean optimizer"),
        ("optimizer.lrr=1", "did you mean lr"),
        ("model.chanels=3", "did you mean channels"),
        ("model.name=nequp", "did you mean nequip"),
        ("model.preset=tiny", "no preset 'tiny'"),
        ("model.channels=many", "model.channels"),
        ("model.cutoff=-1", "cutoff is -1.0"),
        ("model.l_max=-1", "l_max is -1"),
        ("model.channels=0", "channels is 0"),
        ("optimizer.lr=-1", "greater than 0"),
        ("loss.forces.weight=-1", "greater than or equal to 0"),
        ("data.batch_size=0", "greater than 0"),
        ("trainer.dtype=float16", "float32"),
        ("seed=x", "seed"),
        ("seed.inner=1", "seed"),
        ("", "key=value"),
        ("seed", "key=value"),
    ],
)
def test_a_wrong_setting_is_refused_in_one_line_that_names_it(setting, message):
    with pytest.raises(InputError) as error:
        load_config(None, parse_settings([setting]))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "setting",
    [
        *("optimizer.lr=.inf", "optimizer.lr=1e400", "seed=99999999999999999999"),
        *("data.batch_size=yes", "trainer.max_steps=true", "model.channels=yes", "model.cutoff=true"),
        *("model.cutoff=1e-300", "trainer.gradient_clip=true"),
    ],
)
def test_what_is_no_usable_number_is_refused(setting):
    with pytest.raises(InputError, match=setting.split("=")[0].split(".")[-1]):
        load_config(None, parse_settings([setting]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "not valid YAML"),
        ("- 1", "not a table"),
        ("optimizer: 3", "optimizer"),
        ("optimizer: {lr: 0.1}\nseed: 1\noptimizer: {lr: 0.2}", "line 3 gives 'optimizer' a second time"),
        ("optimizer: {lr: 0.1, lr: 0.2}", "'lr' a second time"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused_by_name(tmp_path, text, message):
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(InputError, match=message) as error:
        load_config(tmp_path / "run.yaml")
    assert "run.yaml" in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.yaml: no such file"):
        load_config(tmp_path / "nowhere.yaml")


def test_built_in_data_take_fewer_steps_unless_told_otherwise(tmp_path):
    assert load_config(None).trainer.max_steps == 6_000
    assert load_config(None, parse_settings(["data.train=a.xyz"])).trainer.max_steps == 20_000
    chosen = load_config(None, parse_settings(["trainer.max_steps=20000"]))
    assert chosen.trainer.max_steps == 20_000
    save_config(chosen, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml").trainer.max_steps == 20_000


@pytest.mark.parametrize("section", ["loss", "weak: {labels", "optimizer", "data"])
def test_a_key_that_is_no_name_is_refused(tmp_path, section):
    file = tmp_path / "run.yaml"
    file.write_text(f"{section}: {{true: 1, 3: 2}}" + ("}" if "{" in section else ""))
    with pytest.raises(InputError):
        load_config(file)


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        (
            "data.labels=[energy, force]",
            "data.labels: Input should be 'energy', 'forces' or 'stress', got 'force'",
        ),
        ("data.labels=all", "data.labels: Input should be 'auto', got 'all'"),
        ("data.energy_references=[1]", "data.energy_references: Input should be a valid dictionary"),
    ],
)
def test_of_one_word_or_several_the_one_that_is_wrong_is_named(setting, says):
    with pytest.raises(InputError) as caught:
        load_config(None, parse_settings([setting]))
    assert str(caught.value).startswith(says)
