"""The maintain flow after real runs: it removes as much as it may, and everything goes on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from _drive import LEAN, PROMOTE_IF_FRESHER, Workspace

from infra.storage import Store
from tasks._maintain import DAY, UNREFERENCED

OTHERS = ("mlflow", "prefect", "processes", "dask", "maintenance", "serving", "verified.jsonl")
"""Folders of other programs, and what a sweep and servers note."""


@contextmanager
def maintaining(workspace: Workspace) -> Iterator[Callable[[str], Any]]:
    """Yield a function that runs the flow, "dry" or "real", with everything kept as short as it may be.

    One process of its own runs it each time: to start one takes longer than the flow.
    """
    script = f"""
        import json, sys
        from pathlib import Path
        from infra.prefect_server import configure_environment
        configure_environment(Path({str(workspace.root / "prefect")!r}), {workspace.variables["PREFECT_API_URL"]!r})
        from flows.config import load_config
        from flows.maintain import maintain
        least = ["maintain.keep_days=1", "maintain.keep_versions=2", "maintain.grace_hours=1"]
        least += ["maintain.mlflow_keep_days=1", "maintain.prefect_keep_days=1", "maintain.max_bytes=0"]
        config = load_config(Path({str(workspace.config)!r}), least)
        for line in sys.stdin:
            print(json.dumps(maintain(config, {str(workspace.config)!r}, line == "dry\\n").to_json()), flush=True)
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        env=workspace.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        asked, answers = process.stdin, process.stdout

        def run(kind: str) -> Any:
            print(kind, file=asked, flush=True)
            return json.loads(answers.readline())

        yield run


def objects(workspace: Workspace) -> dict[str, bytes]:
    """Return all objects with their content."""
    store = Store(str(workspace.root))
    return {name: store.get(name) for name in store.list("") if not name.startswith(OTHERS)}


def age(workspace: Workspace, days: float = 90) -> None:
    """Make every file and every note of a sweep older."""
    for path in workspace.root.rglob("*"):
        if path.is_file() and path.relative_to(workspace.root).parts[0] not in ("prefect", "mlflow.db"):
            status = path.stat()
            os.utime(path, (status.st_atime, status.st_mtime - days * DAY))
    notes = workspace.root / UNREFERENCED
    if notes.exists():
        seen = json.loads(notes.read_text())
        notes.write_text(json.dumps({name: since - days * DAY for name, since in seen.items()}))


def names_of(found: Any) -> set[str]:
    """Return the names of all that was found."""
    return {name for group in found["groups"] for name in group["names"]}


def test_after_the_least_that_can_be_kept_everything_works(grown_workspace: Workspace, tmp_path: Path) -> None:
    """At the least limits a dry run changes nothing, and after two real ones retrain, rollback and serving work."""
    workspace = grown_workspace
    before = objects(workspace)
    with maintaining(workspace) as maintain:
        young = maintain("real")
        age(workspace)
        temporary = workspace.root / "shards" / f".a.arrow.{'0' * 16}.tmp"
        temporary.write_bytes(b"torn")
        os.utime(temporary, (1, 1))
        dry = maintain("dry")
        unspoilt = objects(workspace)
        first = maintain("real")
        age(workspace)
        second = maintain("real")
        third = maintain("real")
    after = objects(workspace)

    assert (set(), before) == (names_of(young), unspoilt)
    assert names_of(dry) == names_of(first)
    assert f"shards/{temporary.name}" in names_of(first)
    assert set() == names_of(third)
    assert names_of(first) | names_of(second) >= before.keys() - after.keys() > set()
    assert {"profiles", "scores", "stages", "uses"} == {name.partition("/")[0] for name in before.keys() - after.keys()}
    assert after.items() <= before.items()

    again = workspace.evergreen("retrain", "--json", *LEAN, *PROMOTE_IF_FRESHER).answer
    cached = {name for name, stage in again["stages"].items() if stage["cached"]}
    assert {"profile", "encode", "split", "sample", "train", "compress", "register"} <= cached
    assert "1" == workspace.evergreen("rollback", "--json").answer["champion_version"]
    scored = workspace.evergreen("predict", workspace.data, tmp_path / "scored.parquet", "--json", *LEAN)
    assert "1" == scored.answer["version"]
    with workspace.serving(tmp_path / "log") as url:
        assert "1" == httpx.get(f"{url}/version").text
