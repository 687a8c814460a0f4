"""Retraining from outside: the first model, a second run, a new month, and the way back."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil
import pytest
from _drive import COMMAND, LEAN, MODEL, MONTHS, PROGRESS, TIMEOUT_SECONDS, Ended, State, Workspace

from infra.prefect_server import LAUNCHER

KEYS = (
    "model",
    "run_id",
    "verdict",
    "version",
    "champion_version",
    "metrics",
    "rows",
    "stages",
    "plan",
    "artifacts",
)
CACHEABLE = {"profile", "encode", "split", "sample", "train", "compress", "certify", "evaluate", "register", "draw"}
"""Stages of a run on known data that an earlier run has done; the others look, decide and write."""
ALWAYS = {"ingest", "decide", "report"}
FIRST_RUN = (CACHEABLE | ALWAYS) | {"promote", "deploy"}
LOOK_SECONDS = 0.5
EPHEMERAL_SERVER = "prefect.server.api.server:create_app"
"""What the command line of a server that Prefect starts by itself names."""
LOADED = re.compile(
    r"""<(?:script|img|iframe|link|source|object|embed|use|image)\b[^>]*?(?:src|href|data)\s*=\s*["'](?!data:|\#)[^"']*
    |url\(\s*["']?(?!["']?(?:data:|\#))[^)]*
    |@import[^;]*""",
    re.VERBOSE,
)
"""What a page fetches from elsewhere."""


# The first run


def test_the_first_retrain_promotes_version_1(trained: State) -> None:
    """A first model that reaches its floors becomes version 1 and the champion, and the command ends with 0."""
    outcome = trained.last.answer

    assert ("PROMOTE", "1", "1", None) == (
        outcome["verdict"]["decision"],
        outcome["version"],
        outcome["champion_version"],
        outcome["metrics"]["champion"],
    )
    assert re.match(r"First model: it reaches every floor with auc 0\.\d{4}\.$", outcome["verdict"]["reasons"][0])
    assert 0.6 < outcome["metrics"]["challenger"]["auc"] < 0.95


def test_the_json_is_one_line_with_the_documented_keys(trained: State) -> None:
    """Standard output is one JSON object with the public keys in their order; all else goes to standard error."""
    outcome = trained.last.answer

    assert 1 == len(trained.last.stdout.splitlines())
    assert (KEYS, ["decision", "reasons"], ["challenger", "champion"], ["report", "mlflow_run"]) == (
        tuple(outcome),
        list(outcome["verdict"]),
        list(outcome["metrics"]),
        list(outcome["artifacts"]),
    )
    assert {"total", "train", "validation", "holdout", "unlabelled", "files", "new_files"} == set(outcome["rows"])
    assert FIRST_RUN == set(outcome["stages"])
    assert {("cached", "seconds")} == {tuple(sorted(stage)) for stage in outcome["stages"].values()}


def test_the_first_run_reads_every_file(trained: State) -> None:
    """Of a first run nothing comes from a cache: all files are new, and every row has its side."""
    outcome = trained.last.answer
    rows = outcome["rows"]

    assert (MONTHS, MONTHS, rows["total"]) == (
        rows["files"],
        rows["new_files"],
        rows["train"] + rows["validation"] + rows["holdout"] + rows["unlabelled"],
    )
    assert set() == {name for name, stage in outcome["stages"].items() if stage["cached"]}


def test_progress_is_plain_lines_without_a_terminal(trained: State) -> None:
    """Without a terminal every stage that ends is one line on standard error; beside them are only indented notes."""
    ended = re.findall(r"^(\w+) +\d+\.\d s$", trained.last.stderr, re.MULTILINE)

    assert list(trained.last.answer["stages"]) == ended
    assert [] == [line for line in trained.last.stderr.splitlines() if not PROGRESS.fullmatch(line)]


def test_the_outcome_is_stored_with_the_run(trained: State, workspace: Workspace, tmp_path: Path) -> None:
    """What is printed is also an object of the storage and a file of the MLflow run."""
    outcome = trained.last.answer
    run_id = outcome["run_id"]
    artifact = workspace.mlflow(tmp_path).download_artifacts(run_id, "outcome.json", str(tmp_path))

    assert [outcome, outcome] == [
        json.loads(workspace.stored("runs")[f"{MODEL}/{run_id}.json"]),
        json.loads(Path(artifact).read_text()),
    ]


def test_the_report_is_one_page_that_loads_nothing(trained: State, workspace: Workspace) -> None:
    """The report exists where the outcome says, and shows itself without a network."""
    page = Path(trained.last.answer["artifacts"]["report"]).read_text()

    assert [] == LOADED.findall(page)
    assert all(word in page for word in (MODEL, "PROMOTE", "auc", "<svg"))


def test_mlflow_has_all_of_the_run(trained: State, workspace: Workspace, tmp_path: Path) -> None:
    """The MLflow run is finished and has parameters, metrics, files and the fingerprint of its data."""
    outcome = trained.last.answer
    client = workspace.mlflow(tmp_path)
    run = client.get_run(outcome["run_id"])
    version = json.loads(workspace.stored("versions")[f"{MODEL}/1.json"])
    data = run.inputs.dataset_inputs[0].dataset
    expected = {"data.target": "defaulted", "data.time": "applied_on", "model.name": MODEL, "train.seed": "0"}

    assert "FINISHED" == run.info.status
    assert expected == {name: run.data.params.get(name) for name in expected}
    assert outcome["metrics"]["challenger"] == {n: run.data.metrics[n] for n in outcome["metrics"]["challenger"]}
    assert (MODEL, version["snapshot"][:36]) == (data.name, data.digest)
    assert {"config.json", "outcome.json", "plots", "report.html"} == {
        file.path for file in client.list_artifacts(outcome["run_id"])
    }
    assert ("PROMOTE", "1") == (run.data.tags["evergreen.decision"], run.data.tags["evergreen.version"])


def test_mlflow_registers_the_champion(trained: State, workspace: Workspace, tmp_path: Path) -> None:
    """Version 1 has the alias champion and a link to its run."""
    version = workspace.mlflow(tmp_path).get_model_version_by_alias(MODEL, "champion")

    assert ("1", trained.last.answer["run_id"], "READY") == (str(version.version), version.run_id, version.status)


def test_the_run_names_its_commit(
    trained: State, workspace: Workspace, tmp_path: Path, require: Callable[[str, bool], None]
) -> None:
    """In a git repository the run carries the commit, and whether files differed from it."""
    require("git", shutil.which("git") is not None)
    tags = workspace.mlflow(tmp_path).get_run(trained.last.answer["run_id"]).data.tags

    assert (workspace.run("git", "rev-parse", "HEAD").stdout.strip(), "false") == (
        tags["mlflow.source.git.commit"],
        tags["evergreen.git_dirty"],
    )


def test_nothing_is_pickled(workspace: Workspace) -> None:
    """No object of the storage, MLflow's model files included, is a pickle."""
    stored = workspace.stored(".")

    assert [] == [name for name in stored if Path(name).suffix in (".pkl", ".pickle", ".joblib", ".pt")]
    assert [] == [name for name, payload in stored.items() if re.match(rb"\x80[\x02-\x05]", payload)]
    assert any(name.endswith("data/bundle/model.ubj") for name in stored)


def test_the_given_prefect_server_shows_the_run(trained: State, prefect_api: str) -> None:
    """With PREFECT_API_URL the run is seen there, with readable names and a report; no server is started."""
    expected = {f"{name} {MODEL}" for name in FIRST_RUN}

    def ask(kind: str) -> list[dict[str, str]]:
        return httpx.post(f"{prefect_api}/{kind}/filter", json={}).raise_for_status().json()

    assert (f"retrain {MODEL}", "COMPLETED") in {(run["name"], run["state_type"]) for run in ask("flow_runs")}
    assert expected <= {run["name"] for run in ask("task_runs")}
    assert f"report-{MODEL}" in {artifact["key"] for artifact in ask("artifacts")}
    assert not (trained.kept / ".evergreen/prefect/server.log").exists()


def test_status_and_history_tell_of_the_first_model(trained: State, workspace: Workspace) -> None:
    """Status and history show version 1 in production, in words and as JSON."""
    outcome = trained.last.answer
    status = workspace.evergreen("status", "--json").answer
    (row,) = workspace.evergreen("history", "--json").answer
    history = workspace.evergreen("history").stdout.splitlines()

    assert ("1", ["1"], None, "1", outcome["run_id"], outcome["metrics"]["challenger"], row) == tuple(
        status[key]
        for key in (
            "champion_version",
            "versions",
            "previous_version",
            "released_version",
            "run_id",
            "metrics",
            "last_verdict",
        )
    )
    assert (1, "promote", "1", None, outcome["run_id"], outcome["verdict"]["reasons"][0]) == tuple(
        row[key] for key in ("sequence", "action", "version", "previous", "run_id", "reason")
    )
    assert 2 == len(history)
    assert re.fullmatch(r"\S+ promote +1 +First model: .*", history[1])
    assert workspace.evergreen("status").stdout.startswith(f"{MODEL}: version 1 in production since {row['at']}\n")


# A second run


def test_a_second_run_comes_from_the_caches(workspace: Workspace) -> None:
    """The same data again: every stage that can be cached is, no file is read, and no version is added."""
    before = workspace.published()
    outcome = workspace.evergreen("retrain", "--json").answer
    after = workspace.published()
    added = {name for name in after if name not in before}

    assert (CACHEABLE, ALWAYS) == tuple(
        {name for name, stage in outcome["stages"].items() if stage["cached"] is cached} for cached in (True, False)
    )
    assert ("HOLD", "1", "1", 0) == (
        outcome["verdict"]["decision"],
        outcome["version"],
        outcome["champion_version"],
        outcome["rows"]["new_files"],
    )
    assert outcome["metrics"]["challenger"] == outcome["metrics"]["champion"]
    assert {f"ledger/{MODEL}/00000002.json"} == added
    assert before == {name: value for name, value in after.items() if name not in added}


def test_a_damaged_shard_is_encoded_again(workspace: Workspace) -> None:
    """A shard with one flipped byte is not used: its file is encoded anew, and the result is the same."""
    before = workspace.stored("shards")
    name = min(name for name in before if name.endswith(".arrow"))
    payload = bytearray(before[name])
    payload[len(payload) // 2] ^= 0xFF
    (workspace.root / "shards" / name).write_bytes(payload)
    outcome = workspace.evergreen("retrain", "--json", *LEAN).answer

    assert (1, False, "HOLD", "1") == (
        outcome["rows"]["new_files"],
        outcome["stages"]["encode"]["cached"],
        outcome["verdict"]["decision"],
        outcome["version"],
    )
    assert before == workspace.stored("shards")


def test_a_plan_says_what_would_run_and_changes_nothing(workspace: Workspace) -> None:
    """A plan finds nothing to do on known data and names the file that is new, without a run."""
    before = workspace.published(), workspace.query("SELECT run_uuid FROM runs")
    idle = workspace.evergreen("plan", "--json").answer
    workspace.grow(MONTHS + 1)
    busy = workspace.evergreen("plan", "--files")

    assert ("nothing is new, every stage is cached", {"run", "reuse"}) == (
        idle["summary"],
        {stage["action"] for stage in idle["stages"]},
    )
    assert ["ingest"] == [stage["name"] for stage in idle["stages"] if stage["action"] == "run"]
    assert re.match(
        rf"{MODEL}: work starts at profile: 1 of {MONTHS + 1} files \(applications-2024-09\.parquet: ", busy.stdout
    )
    assert 1 == len(re.findall(r"applications-2024-09\.parquet: new\n  profile   run, nothing is stored", busy.stdout))
    assert MONTHS == len(re.findall(r"\.parquet: unchanged\n  profile   reuse\n", busy.stdout))
    assert before == (workspace.published(), workspace.query("SELECT run_uuid FROM runs"))


# A new month


def test_a_new_month_is_the_only_file_that_is_read(trained: State, grown: State) -> None:
    """A further month costs one profile and one shard; those of the earlier months are used as they are."""
    rows = grown.last.answer["rows"]
    before, after = (
        [{path.name for path in (state.kept / ".evergreen" / kind).iterdir()} for kind in ("profiles", "shards")]
        for state in (trained, grown)
    )

    assert (MONTHS + 1, 1) == (rows["files"], rows["new_files"])
    # Beside the month's own profile there is that of all months, and beside a shard its entry.
    assert [2, 2] == [len(new - old) for old, new in zip(before, after, strict=True)]
    assert all(old < new for old, new in zip(before, after, strict=True))


def test_a_challenger_is_held_against_the_champion(grown: State) -> None:
    """The verdict has the metrics of both models on the same holdout, and says in words what decided."""
    outcome = grown.last.answer

    assert list(outcome["metrics"]["challenger"]) == list(outcome["metrics"]["champion"])
    assert ("PROMOTE", "2", "2") == (
        outcome["verdict"]["decision"],
        outcome["version"],
        outcome["champion_version"],
    )
    assert re.match(
        r"(Better|As good and fresher): auc 0\.\d{4} against 0\.\d{4} on ", outcome["verdict"]["reasons"][0]
    )
    assert "compare" in outcome["stages"]


def test_a_rollback_goes_back_and_forth(grown_workspace: Workspace) -> None:
    """A rollback puts the version before in production everywhere, and a second one undoes it; each has its row."""
    workspace = grown_workspace
    back = workspace.evergreen("rollback", "--to", "1", "--json").answer
    status = workspace.evergreen("status", "--json").answer
    aliases = workspace.published()["aliases"]
    forth = workspace.evergreen("rollback")
    rows = workspace.evergreen("history", "--json").answer

    assert {"model": MODEL, "champion_version": "1", "previous_version": "2", "servers": []} == back
    assert ("1", "2", "1", ["1", "2"]) == tuple(
        status[key] for key in ("champion_version", "previous_version", "released_version", "versions")
    )
    assert [("champion", 1), ("previous", 2)] == aliases
    assert "Version 2 is in production again, after version 1.\n" == forth.stdout
    assert [("promote", "1", None), ("promote", "2", "1"), ("rollback", "1", "2"), ("rollback", "2", "1")] == [
        (row["action"], row["version"], row["previous"]) for row in rows
    ]
    assert [("champion", 2), ("previous", 1)] == workspace.published()["aliases"]


@pytest.mark.parametrize(
    ("version", "message"),
    [
        ("99", "A version is one that was registered, but got version='99' of 'loan-default'. The versions are 1, 2."),
        ("2", "A rollback goes to another version, but got version=2, which is the champion already."),
    ],
)
def test_a_rollback_needs_another_version_that_exists(grown_workspace: Workspace, version: str, message: str) -> None:
    """A version that does not exist, or is the champion already, is refused in one line with exit code 2."""
    before = grown_workspace.published()
    refused = grown_workspace.evergreen("rollback", "--to", version)

    assert (2, "") == (refused.code, refused.stdout)
    assert refused.stderr.startswith(f"evergreen: {message}")
    assert 1 == len(refused.stderr.splitlines())
    assert before == grown_workspace.published()


# Without any server


@pytest.fixture(scope="module")
def embedded(trained: State, tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, Ended, set[int], list[str]]:
    """Retrain a copy of the first run's data with all services embedded, under another root.

    Returns the workspace, what the command said, the Prefect servers that it started, and the processes it left.
    """
    folder = tmp_path_factory.mktemp("embedded")
    shutil.copytree(trained.kept, folder / "loans", ignore=shutil.ignore_patterns(".evergreen", ".git"))
    mark = uuid.uuid4().hex
    workspace = Workspace(folder / "loans", {"EVERGREEN_ROOT": str(folder / "root"), "EVERGREEN_TEST_MARK": mark})
    command = [COMMAND, "retrain", workspace.config]
    servers: set[int] = set()
    with (folder / "stdout").open("w") as stdout, (folder / "stderr").open("w") as stderr:
        run = subprocess.Popen(command, cwd=folder, env=workspace.environment, stdout=stdout, stderr=stderr)
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while run.poll() is None and time.monotonic() < deadline:
            servers |= {
                process.pid for process in psutil.Process(run.pid).children(recursive=True) if is_server(process)
            }
            time.sleep(LOOK_SECONDS)
    left = [str(process) for process in psutil.process_iter() if is_marked(process, mark)]
    run.kill()
    ended = Ended(run.wait(), (folder / "stdout").read_text(), (folder / "stderr").read_text())
    return workspace, ended, servers, left


def is_server(process: psutil.Process) -> bool:
    """Return whether a process is a Prefect server, ours or the one that Prefect starts when it has no address."""
    try:
        command = process.cmdline()
    except psutil.Error:  # it ended just now
        return False
    return command[1:5] == ["-c", LAUNCHER, "server", "start"] or any(EPHEMERAL_SERVER in part for part in command)


def is_marked(process: psutil.Process, mark: str) -> bool:
    """Return whether a process descends from the one that was given the mark."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE and process.environ().get("EVERGREEN_TEST_MARK") == mark
    except psutil.Error:
        return False


def test_an_embedded_run_leaves_no_process(embedded: tuple[Workspace, Ended, set[int], list[str]]) -> None:
    """Without PREFECT_API_URL a run starts one Prefect server, and no process of it is left behind."""
    _, ended, servers, left = embedded

    assert 0 == ended.code, ended.stderr
    assert (1, []) == (len(servers), left)


def test_an_embedded_run_tells_people_what_came_out(embedded: tuple[Workspace, Ended, set[int], list[str]]) -> None:
    """Without --json the answer is the verdict, the metrics, where the report is, and the command for more."""
    workspace, ended, _, _ = embedded
    lines = ended.stdout.strip().splitlines()

    assert f"PROMOTE  version 1 of {MODEL}" == lines[0]
    assert re.search(r"^  auc +0\.\d{4} +-$", ended.stdout, re.MULTILINE)
    assert Path(re.findall(r"^Report +(.+)$", ended.stdout, re.MULTILINE)[0]).is_relative_to(workspace.root)
    assert f"More      evergreen history {workspace.config}" == lines[-1]


def test_the_same_run_elsewhere_gives_the_same_model(
    trained: State, workspace: Workspace, embedded: tuple[Workspace, Ended, set[int], list[str]]
) -> None:
    """Same snapshot, configuration and seed under another root: the same bundle, byte for byte."""
    released = [json.loads(place.stored("serving")[f"{MODEL}/target.json"]) for place in (workspace, embedded[0])]
    here, there = ({Path(file["name"]).name: file["digest"] for file in target["files"]} for target in released)

    assert here["model.ubj"] == there["model.ubj"]
    assert here == there
