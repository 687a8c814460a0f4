"""Smaller forms of a model from outside: proven, shipped, and caught where they are bad."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from _drive import CHECKOUT, LEAN, Ended, State, Workspace
from _planted import planted

BAD = ("crashing", "raising", "breaking", "flipping")
TOLERANT = (
    "--set",
    "compress.enabled=true",
    "--set",
    "compress.tolerance=0.02",
    "--set",
    "compress.budget_seconds=120",
)
"""Few rows prove little."""


def only(*techniques: str) -> tuple[str, str]:
    """Return the option that names techniques."""
    return "--set", f"compress.techniques={list(techniques)}"


@pytest.fixture(scope="module")
def compressed(trained: State) -> tuple[State, dict[str, Any]]:
    """Return the state after version 1 was compressed by all techniques, and what the command said."""
    workspace = trained.restore()
    ended = workspace.evergreen("compress", "--version", "1", "--json", *LEAN, *TOLERANT, *only())
    answer = ended.answer
    return State.keep(workspace, ended, trained.kept.with_name("compressed")), answer


def test_a_version_is_compressed_and_registered(compressed: tuple[State, dict[str, Any]]) -> None:
    """The best form that is proven is a new version, smaller and faster; the champion stays what it was."""
    state, done = compressed
    workspace = state.restore()
    whole, *forms = done["variants"]
    (shipped,) = [form for form in forms if form["fate"] == "shipped"]
    certificate = [name for name in workspace.stored("bundles") if name.endswith("certificate.json")]

    assert ("loan-default", "1", "2") == (done["model"], done["of_version"], done["version"])
    assert "as trained" == whole["name"]
    assert shipped["model_bytes"] * 3 <= whole["model_bytes"]
    assert shipped["row_p50_us"] < whole["row_p50_us"]
    assert certificate
    assert [("champion", 1)] == workspace.query("SELECT alias, version FROM registered_model_aliases")
    assert [(len(done["variants"]),)] == workspace.query(
        "SELECT COUNT(DISTINCT run_uuid) FROM tags WHERE key = 'evergreen.variant'"
    )


def test_a_compressed_version_takes_over_by_a_rollback(
    compressed: tuple[State, dict[str, Any]], tmp_path: Path
) -> None:
    """The version answers files as a champion, much as the one that it was made from did."""
    workspace = compressed[0].restore()
    source = next(workspace.data.glob("*.parquet"))
    before = workspace.evergreen("predict", source, tmp_path / "before.parquet", "--json", *LEAN).answer
    assert 0 == workspace.evergreen("rollback", "--to", "2").code
    after = workspace.evergreen("predict", source, tmp_path / "after.parquet", "--json", *LEAN).answer
    old, new = (pl.read_parquet(tmp_path / f"{name}.parquet")["probability"] for name in ("before", "after"))

    assert ("1", "2") == (before["version"], after["version"])
    assert 0.9 < pl.select(pl.corr(old, new)).item()
    assert old.to_list() != new.to_list()


def test_bad_techniques_do_not_stop_a_retrain(workspace: Workspace, tmp_path: Path) -> None:
    """What crashes, fails, writes a broken file, or flips decisions is named; the best that remains ships."""
    with planted(tmp_path, *BAD, "good"):
        path = os.pathsep.join([str(CHECKOUT), str(tmp_path)])
        place = replace(workspace, variables={**workspace.variables, "PYTHONPATH": path})
        ended = place.evergreen("retrain", "--json", *LEAN, *TOLERANT, *only(*BAD, "good"))
    outcome = ended.answer
    page = (workspace.root / "reports" / "loan-default" / f"{outcome['run_id']}.html").read_text()

    assert "Shipped: a good one is equivalent to the model as trained" in ended.stderr
    failed = {
        line.partition("Compression without ")[2].partition(":")[0]
        for line in ended.stderr.splitlines()
        if "Compression without" in line
    }
    assert {"crashing", "raising", "breaking"} <= failed <= set(BAD)
    assert all(words in page for words in ("its process ended with code -11", "ZeroDivisionError: planted"))
    assert "2% flipped" in page


def test_a_budget_that_nothing_keeps_rejects_the_model(workspace: Workspace) -> None:
    """A model above its budget is not promoted, and the verdict has the figures."""
    outcome = workspace.evergreen("retrain", "--json", *LEAN, "--set", "compress.max_bytes=100").answer

    assert "REJECT" == outcome["verdict"]["decision"]
    assert "above compress.max_bytes = 100" in outcome["verdict"]["reasons"][0]
    assert "1" == outcome["champion_version"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("compress", "--version", "7"), "evergreen: A version is one that was registered, but got version='7'"),
        (
            ("retrain", *only("int8")),
            "evergreen: compress.techniques names techniques, but got 'int8'.",
        ),
    ],
)
def test_what_does_not_exist_is_refused(workspace: Workspace, arguments: tuple[str, ...], message: str) -> None:
    """A version or a technique that does not exist is named in one line, with exit code 2."""
    ended: Ended = workspace.evergreen(*arguments, *LEAN)

    assert 2 == ended.code
    assert ended.stderr.splitlines()[-1].startswith(message)
