"""`evergreen gc` from outside: it removes as much as it may, and everything goes on."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import httpx
from _drive import LEAN, Workspace

LEAST = ("--max-bytes", "0", "--keep-days", "1", "--set", "maintain.grace_hours=1", "--set", "maintain.keep_versions=2")
DAYS = 90
OTHERS = ("mlflow", "prefect", "processes", "dask", "maintenance", "serving", "verified.jsonl")
"""Folders of other programs, and what a sweep and servers note."""


def collect(workspace: Workspace, *arguments: str) -> Any:
    """Collect garbage where no Prefect server answers, and return what went."""
    alone = Workspace(workspace.folder, {**workspace.variables, "PREFECT_API_URL": "http://127.0.0.1:1"})
    return alone.evergreen("gc", "--json", *LEAST, *arguments).answer


def objects(workspace: Workspace) -> set[str]:
    """Return the names of all objects."""
    files = (path.relative_to(workspace.root) for path in workspace.root.rglob("*") if path.is_file())
    return {str(name) for name in files if not str(name).startswith(OTHERS)}


def age(workspace: Workspace) -> None:
    """Make every object, and every note of a sweep, older."""
    for name in objects(workspace):
        path = workspace.root / name
        os.utime(path, (1, path.stat().st_mtime - DAYS * 86400))
    notes = workspace.root / "maintenance" / "unreferenced.json"
    if notes.exists():
        seen = json.loads(notes.read_text())
        notes.write_text(json.dumps({name: since - DAYS * 86400 for name, since in seen.items()}))


def test_after_the_most_that_gc_may_remove_everything_works(grown_workspace: Workspace, tmp_path: Path) -> None:
    """With no room and no time left, only what no version needs goes: serving, scoring, rollback, retrain go on."""
    workspace = grown_workspace
    before = objects(workspace)
    young = collect(workspace)
    age(workspace)
    dry = collect(workspace, "--dry-run")
    unspoilt = objects(workspace)
    first = collect(workspace)
    age(workspace)
    second = collect(workspace)
    third = collect(workspace)
    after = objects(workspace)

    assert ([], before) == (young["names"], unspoilt)
    assert (dry["names"], [], True) == (first["names"], third["names"], dry["is_dry_run"])
    assert {*first["names"], *second["names"]} == before - after > set()
    assert len(after) == sum(kind["stays"] + kind["waits"] for kind in third["kinds"] if kind["kind"] != "serving")

    assert "2" == workspace.evergreen("status", "--json").answer["champion_version"]
    with workspace.serving(tmp_path / "log") as url:
        assert "2" == httpx.get(f"{url}/version").text
    scored = workspace.evergreen("predict", workspace.data, tmp_path / "scored.parquet", "--json", *LEAN)
    assert "2" == scored.answer["version"]
    assert "1" == workspace.evergreen("rollback", "--json").answer["champion_version"]
    again = workspace.evergreen("retrain", "--json", *LEAN).answer
    assert 0 == again["rows"]["new_files"]


def test_a_size_that_is_none_is_refused(workspace: Workspace) -> None:
    """A limit without a number is named with the option, and nothing is removed."""
    before = objects(workspace)
    ended = workspace.evergreen("gc", "--max-bytes", "much")

    assert (
        2,
        "evergreen: A size is a number with a unit, but got --max-bytes=much. Write for example --max-bytes 10GB.\n",
        before,
    ) == (ended.code, ended.stderr, objects(workspace))
