"""evergreen.toml: read, checked and completed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flows.config import ModelConfig, RetrainConfig, changed_keys, load_config
from infra.errors import InputError
from tasks._metrics import DEFAULT_METRIC, metric_names
from tasks._snapshot import DataConfig

FOUR_LINES = (
    'model.name = "loan-default"\ndata.source = "data/*.parquet"\ndata.target = "defaulted"\ndata.time = "at"\n'
)
LEAST = '[model]\nname = "a"\n[data]\nsource = "d"\ntarget = "y"\n'


def load(folder: Path, text: str, *overrides: str) -> RetrainConfig:
    """Load a configuration from its text."""
    path = folder / "evergreen.toml"
    path.write_text(text)
    return load_config(path, list(overrides))


def set_in(folder: Path, *overrides: str) -> dict[str, Any]:
    """Return what is set in the least configuration, beside name, source and target, by overrides."""
    values = load(folder, LEAST, *overrides).model_dump(exclude_unset=True)
    return {
        section: table
        for section, table in values.items()
        if section != "model" and table != {"source": "d", "target": "y"}
    }


def test_four_lines_suffice(tmp_path: Path) -> None:
    """Name, source, target and time are enough; all else has its default."""
    expected = RetrainConfig(
        model=ModelConfig(name="loan-default"), data=DataConfig(source="data/*.parquet", target="defaulted", time="at")
    )

    assert expected == load(tmp_path, FOUR_LINES)


def test_sections_are_read(tmp_path: Path) -> None:
    """Sections, nested ones too, reach their settings."""
    found = load(
        tmp_path,
        LEAST + '[split]\nby = "group"\n[train.xgboost]\nrounds = 7\n'
        '[promote.floors]\nauc = 0.7\n[data.csv]\ndelimiter = ";"\n',
    )

    assert ("group", 7, {"auc": 0.7}, ";") == (
        found.split.by,
        found.train.xgboost.rounds,
        found.promote.floors,
        found.data.csv.delimiter,
    )


def test_a_configuration_survives_json(tmp_path: Path) -> None:
    """A configuration that was logged as JSON is read back as the same, so that a run can be repeated."""
    found = load(tmp_path, LEAST + '[data.kinds]\n"zip code" = "categorical"\n[promote.floors]\nauc = 0.7\n')

    assert found == RetrainConfig.model_validate_json(found.model_dump_json())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "[sampleing]",
            r"A configuration has known keys alone, but got 'sampleing'\. Did you mean \"sampling\"\? The keys",
        ),
        (
            "taget = 1",
            r"\[data\] has known keys alone, but got 'data\.taget'\. Did you mean \"target\"\? .* source, target",
        ),
        ("[split]\nholdout = 1", r"\[split\] .* 'split\.holdout'\. Did you mean \"holdout_fraction\"\?"),
        ('[data.csv]\ndelimeter = ";"', r"\[data\.csv\] .* 'data\.csv\.delimeter'\. Did you mean \"delimiter\"\?"),
        (
            "[train.xgboost]\nmax_dpth = 3",
            r"\[train\.xgboost\] .* 'train\.xgboost\.max_dpth'\. Did you mean \"max_depth\"\?",
        ),
        ("[promote]\nmargn = 1", r"\[promote\] .* Did you mean \"margin\"\?"),
        ("[deploy]\ntimeout = 1", r"\[deploy\] .* Did you mean \"timeout_seconds\"\?"),
        ("[cluster]\nworker = 1", r"\[cluster\] .* Did you mean \"workers\"\?"),
        (
            "[compress]\nzzz = 1",
            r"\[compress\] has known keys alone, but got 'compress\.zzz'\. The keys are enabled, tolerance, ",
        ),
    ],
)
def test_an_unknown_key_is_named(tmp_path: Path, line: str, message: str) -> None:
    """An unknown key, at any depth, is named with its section, the nearest key, and all that there are."""
    with pytest.raises(InputError, match=message):
        load(tmp_path, f"{LEAST}{line}\n")


@pytest.mark.parametrize("section", ["monitor"])
def test_a_section_without_settings_says_so(tmp_path: Path, section: str) -> None:
    """A section that is only reserved so far accepts nothing."""
    with pytest.raises(InputError, match=rf"\[{section}\] .* '{section}\.zzz'\. It has no settings yet\."):
        load(tmp_path, f"{LEAST}[{section}]\nzzz = 1\n")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "[split]\nholdout_fraction = 2",
            r"split\.holdout_fraction does not fit: input should be less than 1, but got 2\. Correct",
        ),
        (
            "[sampling]\nrows = 50",
            r"sampling\.rows does not fit: input should be greater than or equal to 100, but got 50\. Correct sampling",
        ),
        (
            '[split]\nby = "tim"',
            r"split\.by does not fit: input should be 'row', 'time' or 'group', but got 'tim'\. Correct split\.by",
        ),
        (
            '[train.xgboost]\nrounds = "x"',
            r"train\.xgboost\.rounds does not fit: input should be a valid integer.* but got 'x'",
        ),
        (
            '[promote.floors]\nauc = "x"',
            r"promote\.floors\.auc does not fit: input should be a valid number.* but got 'x'",
        ),
        (
            '[data.kinds]\nzip = "category"',
            r"data\.kinds\.zip does not fit: input should be 'numeric', 'categorical'.* got 'category'",
        ),
        ('[cluster]\naddress = "here"', r"cluster\.address does not fit: .* but got 'here'"),
        (
            '[data.csv]\ndelimiter = ";;"',
            r"data\.csv\.delimiter does not fit: .*must be one ASCII character, but got value=';;'",
        ),
    ],
)
def test_a_value_that_does_not_fit_is_named(tmp_path: Path, line: str, message: str) -> None:
    """A value of another type, or outside its range, is named with its key."""
    with pytest.raises(InputError, match=message):
        load(tmp_path, f"{LEAST}{line}\n")


def test_a_section_that_is_a_value_is_named(tmp_path: Path) -> None:
    """A value in place of a section is named."""
    with pytest.raises(
        InputError, match=r"split does not fit: input should be a valid dictionary.*, but got 3\. Correct"
    ):
        load(tmp_path, f"split = 3\n{LEAST}")


@pytest.mark.parametrize("value", ["5", "[5]", "true", "{ a = 1 }"])
def test_a_wrong_source_is_named_as_it_was_written(tmp_path: Path, value: str) -> None:
    """A source is a text or a list of texts: the message has the key of the file, and none of the checker's own."""
    with pytest.raises(InputError, match=r"data\.source(\.0)? does not fit: .*Correct data\.source(\.0)?\."):
        load(tmp_path, LEAST.replace('"d"', value))


@pytest.mark.parametrize("name", ["", "Loans", "a b", "a--b", "-a", "a_b", "a/b", "ä"])
def test_a_models_name_is_plain(tmp_path: Path, name: str) -> None:
    """A name that could not be part of a path or an address is refused with an example."""
    with pytest.raises(InputError, match=rf"model\.name does not fit: .*such as loan-default, but got '{name}'"):
        load(tmp_path, LEAST.replace('"a"', f'"{name}"'))


def test_a_models_name_is_short(tmp_path: Path) -> None:
    """A name has at most 60 characters."""
    assert "a" * 60 == load(tmp_path, LEAST.replace('"a"', f'"{"a" * 60}"')).model.name
    with pytest.raises(InputError, match=r"model\.name does not fit: string should have at most 60 characters"):
        load(tmp_path, LEAST.replace('"a"', f'"{"a" * 61}"'))


@pytest.mark.parametrize(
    ("without", "key", "example"),
    [
        ('name = "a"\n', "model.name", '"loan-default"'),
        ('source = "d"\n', "data.source", '"data/*.parquet"'),
        ('target = "y"\n', "data.target", '"defaulted"'),
    ],
)
def test_a_missing_key_is_named(tmp_path: Path, without: str, key: str, example: str) -> None:
    """A key that a configuration needs is named, with a line to add."""
    with pytest.raises(InputError) as caught:
        load(tmp_path, LEAST.replace(without, ""))

    path = tmp_path / "evergreen.toml"
    assert f"{path}: A configuration needs {key}, but got none. Add a line such as {key} = {example}." == str(
        caught.value
    )


@pytest.mark.parametrize(("text", "section"), [("", "model"), ('model.name = "a"\n', "data"), ("[data]\n", "model")])
def test_a_missing_section_is_named(tmp_path: Path, text: str, section: str) -> None:
    """A section that a configuration needs is named as one."""
    with pytest.raises(InputError, match=rf"A configuration needs the section \[{section}\], but got none\."):
        load(tmp_path, text)


def test_a_file_that_is_absent_is_named(tmp_path: Path) -> None:
    """A path without a file is told, with two ways to get one."""
    message = rf"must exist, but got none at {tmp_path}/no\.toml\. Write one, or make a demo with evergreen demo\."
    with pytest.raises(InputError, match=message):
        load_config(tmp_path / "no.toml")


def test_a_folder_is_no_configuration(tmp_path: Path) -> None:
    """A folder is told from a file."""
    with pytest.raises(
        InputError, match=rf"is a file, but got the folder {tmp_path}\. Name the evergreen\.toml in it\."
    ):
        load_config(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[model\n", r"is valid TOML, but got .*evergreen\.toml: .*\(at line 1, column 7\)\. Mend that line\."),
        (LEAST.encode() + b'[data]\nx = "1"\n', r"is valid TOML, but got .*line 6"),
        (b"name = \xff\n", r"is valid TOML, but got .*'utf-8' codec can't decode byte 0xff"),
    ],
)
def test_what_is_no_toml_is_told(tmp_path: Path, content: bytes, message: str) -> None:
    """A syntax error is told with its place."""
    path = tmp_path / "evergreen.toml"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        load_config(path)


# --set


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["split.by=time"], {"split": {"by": "time"}}),
        (['split.by="time"'], {"split": {"by": "time"}}),
        ([" split . by =time"], {"split": {"by": "time"}}),
        (["split.by = time "], {"split": {"by": "time"}}),
        (["train.xgboost.rounds=10"], {"train": {"xgboost": {"rounds": 10}}}),
        (["split.holdout_fraction=0.3"], {"split": {"holdout_fraction": 0.3}}),
        (["compress.enabled=false"], {"compress": {"enabled": False}}),
        (['data.ignore=["a", "b=c"]'], {"data": {"source": "d", "target": "y", "ignore": ["a", "b=c"]}}),
        (["data.source=a/*.csv"], {"data": {"source": "a/*.csv", "target": "y"}}),
        (["data.positive=a=b"], {"data": {"source": "d", "target": "y", "positive": "a=b"}}),
        (["data.kinds.zip=categorical"], {"data": {"source": "d", "target": "y", "kinds": {"zip": "categorical"}}}),
        (["promote.floors.auc=0.7", "promote.margin=0"], {"promote": {"floors": {"auc": 0.7}, "margin": 0.0}}),
        (["promote.floors={auc = 0.7, brier = 0.2}"], {"promote": {"floors": {"auc": 0.7, "brier": 0.2}}}),
        (["promote.floors={}"], {"promote": {"floors": {}}}),
        (["split.by=row", "split.by=time"], {"split": {"by": "time"}}),
    ],
)
def test_set_changes_a_key(tmp_path: Path, overrides: list[str], expected: dict[str, Any]) -> None:
    """--set takes TOML values and plain texts, makes the sections that it needs, and the last one wins."""
    assert expected == set_in(tmp_path, *overrides)


def test_set_names_a_column_with_a_dot(tmp_path: Path) -> None:
    """A quoted part of a key may have a dot in it, as in the TOML file and in the messages that offer data.kinds."""
    assert {"a.b": "numeric"} == load(tmp_path, LEAST, 'data.kinds."a.b"=numeric').data.kinds


def test_set_wins_over_the_file(tmp_path: Path) -> None:
    """A key of the file is changed for this call, and the others of its section stay."""
    found = load(tmp_path, LEAST + '[split]\nby = "row"\nholdout_fraction = 0.3\n', "split.by=time")

    assert ("time", 0.3) == (found.split.by, found.split.holdout_fraction)


@pytest.mark.parametrize("override", ["split.by", "by=time", ".by=1", "split.=1", "=1", ""])
def test_a_malformed_set_is_refused(tmp_path: Path, override: str) -> None:
    """--set without a section, a key or a value is refused with an example."""
    message = rf"--set takes section\.key=value, but got '{override}'\. Write for example --set split\.by=time\."
    with pytest.raises(InputError, match=message):
        load(tmp_path, LEAST, override)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.name.x=1", r"--set takes section\.key=value, but got 'model\.name\.x=1': 'name' is no section\."),
        ("split.bye=time", r"\[split\] has known keys alone, but got 'split\.bye'\. Did you mean \"by\"\?"),
        ("spit.by=time", r"A configuration has known keys alone, but got 'spit'\. Did you mean \"split\"\?"),
        ("split.by=tim", r"split\.by does not fit: .* but got 'tim'"),
    ],
)
def test_a_set_is_checked_as_the_file_is(tmp_path: Path, override: str, message: str) -> None:
    """What --set changes is checked like what the file says."""
    with pytest.raises(InputError, match=message):
        load(tmp_path, LEAST, override)


# The metric


def test_metric_of_a_task() -> None:
    """Without a metric the verdict is about that of the task; a metric that is set counts."""
    assert (DEFAULT_METRIC["binary"], "rmse", "brier") == (
        ModelConfig(name="a").metric_of("binary"),
        ModelConfig(name="a").metric_of("regression"),
        ModelConfig(name="a", metric="brier").metric_of("binary"),
    )
    assert all(metric in metric_names(task) for task, metric in DEFAULT_METRIC.items())


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (
            "brierr",
            r"model\.metric is one that a binary model has, but got 'brierr'\. Did you mean \"brier\"\? They are auc",
        ),
        ("zzz", r"but got 'zzz'\. They are"),
    ],
)
def test_an_unknown_metric_is_named(metric: str, message: str) -> None:
    """A metric that the task lacks is refused with the nearest one and all that there are."""
    with pytest.raises(InputError, match=message):
        ModelConfig(name="a", metric=metric).metric_of("binary")


def test_every_setting_is_described() -> None:
    """Every field of every section says what it is: Prefect's form shows it."""

    def undescribed(model: Any, path: str = "") -> list[str]:
        found = []
        for name, field in model.model_fields.items():
            if hasattr(field.annotation, "model_fields"):
                found += undescribed(field.annotation, f"{path}{name}.")
            elif not field.description:
                found.append(f"{path}{name}")
        return found

    assert [] == undescribed(RetrainConfig)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            'retrain = "every day"',
            r"schedule\.retrain does not fit: .*a cron line of five fields such as",
        ),
        ('retrain = "2s"', r"schedule\.retrain does not fit: .*an interval is 5s or longer"),
        ('timezone = "Europe/Nowhere"', r"schedule\.timezone does not fit: .*a time zone such as Europe/Berlin"),
        ('overlap = "both"', r"schedule\.overlap does not fit: .*'queue' or 'skip'"),
        ('predict = "1h"', r"schedule does not fit: .*predict needs predict_input and predict_output beside it"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(tmp_path: Path, line: str, message: str) -> None:
    """A wrong schedule is named with its key and what one looks like."""
    with pytest.raises(InputError, match=message):
        load(tmp_path, f"{LEAST}[schedule]\n{line}\n")


def test_a_secret_in_the_file_is_not_shown(tmp_path: Path) -> None:
    """A Slack address in the file is refused, and does not appear in the message."""
    with pytest.raises(InputError, match=r"notify\.slack does not fit") as caught:
        load(tmp_path, f'{LEAST}[notify]\nslack = "https://hooks.slack.com/services/T0/B0/pine"\n')

    assert "pine" not in str(caught.value)


def test_what_a_run_changes_is_known_by_key(tmp_path: Path) -> None:
    """The keys that differ from the file are named with both values; a file that is gone changes nothing."""
    path = tmp_path / "evergreen.toml"
    path.write_text(LEAST)
    config = load_config(path, ["train.xgboost.rounds=60", "split.by=row"])

    assert {"split.by": ("row", None), "train.xgboost.rounds": (60, 2000)} == changed_keys(config, path)
    assert {} == changed_keys(load_config(path), path)
    path.unlink()
    assert {} == changed_keys(config, path)
