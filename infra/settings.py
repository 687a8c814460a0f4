"""Where this process is: the root of its storage, its local folder and the servers it speaks to.

Read from the environment once, in `main` or a fixture, and handed on; never built at import.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from infra.errors import InputError, nearest
from infra.storage import Store

LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR"]
LOG_LEVELS: tuple[LogLevel, ...] = ("DEBUG", "INFO", "WARNING", "ERROR")
FOLDER = ".evergreen"
"""Name of the folder beside a configuration that holds everything unless the settings say otherwise."""


@dataclass(frozen=True)
class Places:
    """Where the objects and the local files of a configuration are."""

    root: str
    """What `Store` takes: an absolute folder or `s3://bucket/prefix`."""
    state: Path
    """Local folder for databases and logs."""


class Settings(BaseSettings):
    """What the environment says about this process; an empty variable counts as not set."""

    model_config = SettingsConfigDict(
        env_prefix="EVERGREEN_", env_ignore_empty=True, frozen=True, validate_by_name=True, validate_by_alias=True
    )

    root: str | None = None
    """Folder or `s3://bucket/prefix` of all objects; None: `.evergreen` beside the configuration."""
    state: Path | None = None
    """Local folder for databases and logs; None: the root if it is a folder, else the default of `root`."""
    mlflow_tracking_uri: str | None = Field(default=None, validation_alias="MLFLOW_TRACKING_URI")
    """MLflow's server or database, from MLFLOW_TRACKING_URI; None: a database in the state folder."""
    prefect_api_url: str | None = Field(default=None, validation_alias="PREFECT_API_URL")
    """Prefect's server, from PREFECT_API_URL; None: one is started for the run."""
    log_level: LogLevel = "INFO"
    """Least severe messages that are shown."""

    def __init__(self, **values: Any) -> None:
        """Read the environment; InputError names the variable that is wrong."""
        try:
            super().__init__(**values)
        except ValidationError as error:
            causes = (detail.get("ctx", {}).get("error") for detail in error.errors())
            cause = next((cause for cause in causes if isinstance(cause, InputError)), None)
            if cause is None:
                raise
            raise cause from None

    @field_validator("root")
    @classmethod
    def _check_root(cls, root: str | None) -> str | None:
        return root if root is None else Store(root).root

    @field_validator("state", mode="before")
    @classmethod
    def _check_state(cls, state: str | Path | None) -> Path | None:
        if "://" in str(state):
            raise InputError(
                "The state is a folder of this machine, because databases live there, "
                f"but got EVERGREEN_STATE={state}. Name a folder; EVERGREEN_ROOT may be on S3."
            )
        return None if state is None else Path(state).expanduser().absolute()

    @field_validator("log_level", mode="before")
    @classmethod
    def _check_log_level(cls, level: str) -> str:
        if level.upper() not in LOG_LEVELS:
            raise InputError(
                f"The log level is one of {', '.join(LOG_LEVELS)}, but got EVERGREEN_LOG_LEVEL={level}. "
                f"Set one of these.{nearest(level.upper(), LOG_LEVELS)}"
            )
        return level.upper()

    def locate(self, config_path: str | Path) -> Places:
        """Return where things are for a configuration file.

        Relative folders of the environment are relative to the current folder. The default is the nearest folder of
        that name, in the file's folder or in one above it, so that models side by side can share one; beside the file
        where there is none.
        """
        folder = Path(config_path).expanduser().absolute().parent
        above = (place / FOLDER for place in (folder, *folder.parents))
        default = next((place for place in above if place.is_dir()), folder / FOLDER)
        store = Store(self.root or str(default))
        return Places(store.root, self.state or (Path(store.root) if store.is_local else default))
