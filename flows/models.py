"""The models below a folder: every evergreen.toml in it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from flows.config import RetrainConfig, load_config
from infra.errors import InputError

FILE = "evergreen.toml"
PASSED_OVER = frozenset({"node_modules", "__pycache__", "site-packages"})


@dataclass(frozen=True)
class Model:
    """A configuration file that is in order."""

    path: Path
    config: RetrainConfig


def find_models(place: Path) -> tuple[Model, ...]:
    """Read the configuration files of a folder and of those in it, in the order of their names, or the one named.

    Hidden folders and environments are passed over.

    Raises:
        InputError: there is none, one is wrong, or two are of one model.
    """
    paths = [place.absolute()] if place.is_file() else sorted(_below(place.absolute()))
    if not paths:
        raise InputError(
            f"There must be a model to run, but got no {FILE} in {place} or below. "
            "Write one, or make a demo with evergreen demo."
        )
    models = tuple(Model(path, load_config(path)) for path in paths)
    seen: dict[str, Path] = {}
    for model in models:
        name = model.config.model.name
        if name in seen:
            raise InputError(
                f"Every model has a name of its own, but got model.name = {name!r} in {seen[name]} and in "
                f"{model.path}. Change one of them."
            )
        seen[name] = model.path
    return models


def _below(folder: Path) -> list[Path]:
    found = []
    for base, names, files in os.walk(folder):
        names[:] = [
            name
            for name in names
            if not name.startswith(".") and name not in PASSED_OVER and not Path(base, name, "pyvenv.cfg").exists()
        ]
        found += [Path(base, file) for file in files if file == FILE]
    return found
