"""evergreen.toml: one file per model, read, checked and completed."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_core import ErrorDetails

from flows.timetable import ScheduleConfig
from infra.bundle.schema import Task
from infra.clusters import ClusterConfig
from infra.errors import InputError, nearest
from infra.serving.release import DeployConfig
from tasks._compress import CompressConfig
from tasks._decide import PromoteConfig
from tasks._maintain import MaintainConfig
from tasks._metrics import DEFAULT_METRIC, metric_names
from tasks._notify import NotifyConfig
from tasks._sample import SamplingConfig
from tasks._snapshot import DataConfig
from tasks._split import SplitConfig
from tasks._train import TrainConfig

UNION_MEMBERS = ("list[", "literal[", "constrained-")
"""How pydantic begins the names of a union's members."""
MODEL_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


class ModelConfig(BaseModel):
    """What is retrained."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(max_length=60, description="Name of the model: lower-case letters, digits and single hyphens.")
    task: Task | None = Field(default=None, description="binary, multiclass or regression. Inferred when empty.")
    metric: str | None = Field(
        default=None, description="What the verdict is about. auc, log_loss (multiclass) or rmse when empty."
    )

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        if not MODEL_NAME.fullmatch(name):
            raise ValueError("lower-case letters, digits and single hyphens, such as loan-default")
        return name

    def metric_of(self, task: Task) -> str:
        """Return the metric of the verdict.

        Raises:
            InputError: the task has no such metric.
        """
        metric = self.metric or DEFAULT_METRIC[task]
        if metric not in metric_names(task):
            raise InputError(
                f"model.metric is one that a {task} model has, but got {metric!r}."
                f"{nearest(metric, metric_names(task))} They are {', '.join(metric_names(task))}."
            )
        return metric


class MonitorConfig(BaseModel):
    """How the champion is watched; no settings yet."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class RetrainConfig(BaseModel):
    """Everything about one model: the content of its evergreen.toml."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: ModelConfig = Field(description="What is retrained.")
    data: DataConfig = Field(description="Which rows to learn from.")
    split: SplitConfig = Field(default=SplitConfig(), description="How to divide the rows.")
    sampling: SamplingConfig = Field(default=SamplingConfig(), description="How many rows to train on.")
    train: TrainConfig = Field(default=TrainConfig(), description="What to train.")
    compress: CompressConfig = Field(default=CompressConfig(), description="How small to make it.")
    promote: PromoteConfig = Field(default=PromoteConfig(), description="When a new model takes over.")
    deploy: DeployConfig = Field(default=DeployConfig(), description="Where it answers.")
    monitor: MonitorConfig = Field(default=MonitorConfig(), description="How it is watched; no settings yet.")
    schedule: ScheduleConfig = Field(default=ScheduleConfig(), description="When its flows run by themselves.")
    notify: NotifyConfig = Field(default=NotifyConfig(), description="Who is told what.")
    maintain: MaintainConfig = Field(default=MaintainConfig(), description="What is kept, and for how long.")
    cluster: ClusterConfig = Field(default=ClusterConfig(), description="Where Dask runs.")


def load_config(path: Path, overrides: list[str] | None = None) -> RetrainConfig:
    """Read a configuration file, with single keys changed as in `split.by=time`.

    Raises:
        InputError: the file is absent or no TOML, a key is unknown, or a value does not fit; the message names the
            file and the key.
    """
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(
            f"A configuration file must exist, but got none at {path}. Write one, or make a demo with evergreen demo."
        ) from error
    except IsADirectoryError as error:
        raise InputError(
            f"A configuration is a file, but got the folder {path}. Name the evergreen.toml in it."
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"A configuration is valid TOML, but got {path}: {error}. Mend that line.") from error
    for override in overrides or []:
        _set(raw, override)
    try:
        return RetrainConfig.model_validate(raw)
    except ValidationError as error:
        raise InputError(f"{path}: {_explain(error.errors()[0])}") from error


def changed_keys(config: RetrainConfig, path: Path) -> dict[str, tuple[Any, Any]]:
    """Return what differs from the file, key by key: the value here and the file's; nothing where it can't be read."""
    try:
        files = dict(_leaves(load_config(path).model_dump(mode="json")))
    except InputError:
        return {}
    ours = dict(_leaves(config.model_dump(mode="json")))
    return {key: (value, files.get(key)) for key, value in ours.items() if value != files.get(key)}


def _leaves(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _set(raw: dict[str, Any], override: str) -> None:
    """Change one key of a parsed configuration: `section.key=value`, the value as TOML or plain text."""
    key, separator, text = override.partition("=")
    try:
        change = tomllib.loads(f'{key} = ""')
    except tomllib.TOMLDecodeError:
        change = {}
    if not separator or not any(isinstance(section, dict) for section in change.values()):
        raise InputError(f"--set takes section.key=value, but got {override!r}. Write for example --set split.by=time.")
    names: list[str] = []
    node: Any = change
    while isinstance(node, dict):
        ((name, node),) = node.items()
        names.append(name)
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    table = raw
    for name in names[:-1]:
        table = table.setdefault(name, {})
        if not isinstance(table, dict):
            raise InputError(f"--set takes section.key=value, but got {override!r}: {name!r} is no section.")
    table[names[-1]] = value


def _explain(error: ErrorDetails) -> str:
    """Say in one line what is wrong with a value, and what to do."""
    # Pydantic adds which member of a union it tried.
    path = [str(part) for part in error["loc"] if not str(part).startswith(UNION_MEMBERS) and part != "str"]
    key = ".".join(path)
    if error["type"] == "extra_forbidden":
        valid = list(_model_at(path[:-1]).model_fields)
        where = f"[{'.'.join(path[:-1])}]" if len(path) > 1 else "A configuration"
        known = f"The keys are {', '.join(valid)}." if valid else "It has no settings yet."
        return f"{where} has known keys alone, but got {key!r}.{nearest(path[-1], valid)} {known}"
    if error["type"] == "missing" and len(path) == 1:
        return f"A configuration needs the section [{key}], but got none. Add [{key}] with the keys that it needs."
    if error["type"] == "missing":
        return f"A configuration needs {key}, but got none. Add a line such as {key} = {_example(key)}."
    # An address that should not be in the file may be a secret: it is not shown.
    found = "" if path[0] == "notify" else f", but got {error['input']!r}"
    return f"{key} does not fit: {error['msg'][:1].lower()}{error['msg'][1:]}{found}. Correct {key}."


def _model_at(path: list[str]) -> type[BaseModel]:
    model: type[BaseModel] = RetrainConfig
    for name in path:
        annotation = model.model_fields[name].annotation
        assert isinstance(annotation, type) and issubclass(annotation, BaseModel), f"{name} is a section"
        model = annotation
    return model


def _example(key: str) -> str:
    examples = {"model.name": '"loan-default"', "data.source": '"data/*.parquet"', "data.target": '"defaulted"'}
    return examples.get(key, "...")
