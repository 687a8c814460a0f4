"""What the environment says."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from infra.errors import InputError
from infra.settings import Places, Settings

VARIABLES = ("EVERGREEN_ROOT", "EVERGREEN_STATE", "EVERGREEN_LOG_LEVEL", "MLFLOW_TRACKING_URI", "PREFECT_API_URL")


@pytest.fixture(autouse=True)
def _empty_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


def test_defaults() -> None:
    """Nothing set is a laptop: no root, no server, log level INFO."""
    assert Settings().model_dump() == {
        "root": None,
        "state": None,
        "mlflow_tracking_uri": None,
        "prefect_api_url": None,
        "log_level": "INFO",
    }


def test_every_variable_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each setting comes from its variable; MLflow's and Prefect's keep their own names."""
    for variable, value in zip(
        VARIABLES, ("s3://b/p/", "~/state", "debug", "http://mlflow", "http://prefect/api"), strict=True
    ):
        monkeypatch.setenv(variable, value)

    assert {
        "root": "s3://b/p",
        "state": tmp_path / "home/state",
        "mlflow_tracking_uri": "http://mlflow",
        "prefect_api_url": "http://prefect/api",
        "log_level": "DEBUG",
    } == Settings().model_dump()


def test_an_empty_variable_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable that a shell or a container sets to nothing counts as absent."""
    for variable in VARIABLES:
        monkeypatch.setenv(variable, "")

    assert Settings() == Settings(root=None)


def test_arguments_win_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fixture can name every setting by its field."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://environment")

    assert Settings(mlflow_tracking_uri="http://argument").mlflow_tracking_uri == "http://argument"


def test_settings_are_frozen() -> None:
    """Nothing changes the settings after main built them."""
    with pytest.raises(ValidationError, match="frozen"):
        Settings().root = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("root", "state", "expected_root", "expected_state"),
    [
        (None, None, "project/.evergreen", "project/.evergreen"),
        (None, "state", "project/.evergreen", "state"),
        ("data", None, "data", "data"),
        ("~/data", None, "home/data", "home/data"),
        ("data", "~/state", "data", "home/state"),
        ("s3://bucket/prefix", None, "s3://bucket/prefix", "project/.evergreen"),
        ("s3://bucket/prefix", "state", "s3://bucket/prefix", "state"),
    ],
)
def test_places(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    root: str | None,
    state: str | None,
    expected_root: str,
    expected_state: str,
) -> None:
    """The default is beside the configuration, the environment's folders start at the current one."""
    for variable, value in (("EVERGREEN_ROOT", root), ("EVERGREEN_STATE", state)):
        if value is not None:
            monkeypatch.setenv(variable, value)
    absolute = expected_root if "://" in expected_root else str(tmp_path / expected_root)

    assert Places(absolute, tmp_path / expected_state) == Settings().locate("project/evergreen.toml")


def test_locating_makes_no_folder(tmp_path: Path) -> None:
    """Settings only say where things are."""
    Settings().locate(tmp_path / "project/evergreen.toml")

    assert list(tmp_path.iterdir()) == []


def test_an_unknown_log_level_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong log level names the variable, the levels and the nearest one."""
    monkeypatch.setenv("EVERGREEN_LOG_LEVEL", "warn")
    message = r"one of DEBUG, INFO, .* got EVERGREEN_LOG_LEVEL=warn\. Set one of these\. Did you mean \"WARNING\"\?"
    with pytest.raises(InputError, match=message):
        Settings()


def test_the_state_is_local(monkeypatch: pytest.MonkeyPatch) -> None:
    """Databases cannot live on S3."""
    monkeypatch.setenv("EVERGREEN_STATE", "s3://bucket/state")
    with pytest.raises(InputError, match=r"folder of this machine, .* got EVERGREEN_STATE=s3://bucket/state\. Name a"):
        Settings()


def test_an_unknown_kind_of_root_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A root that the storage does not know ends in the storage's message."""
    monkeypatch.setenv("EVERGREEN_ROOT", "gs://bucket")
    with pytest.raises(InputError, match="but got root=gs://bucket"):
        Settings()


def test_a_wrong_argument_is_an_error_of_ours() -> None:
    """A setting that no variable could hold is reported as pydantic does."""
    with pytest.raises(ValidationError, match=r"mlflow_tracking_uri|MLFLOW_TRACKING_URI"):
        Settings(mlflow_tracking_uri=3)


def test_models_side_by_side_share_a_folder_above(tmp_path: Path) -> None:
    """The nearest .evergreen counts: beside the file, else in a folder above it, else a new one beside the file."""
    inner = tmp_path / "models" / "loans"
    inner.mkdir(parents=True)
    alone = Settings().locate(inner / "evergreen.toml").state
    (tmp_path / ".evergreen").mkdir()
    shared = Settings().locate(inner / "evergreen.toml").state
    (inner / ".evergreen").mkdir()

    assert (inner / ".evergreen", tmp_path / ".evergreen") == (alone, shared)
    assert inner / ".evergreen" == Settings().locate(inner / "evergreen.toml").state
