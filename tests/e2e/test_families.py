"""Two families from outside: trees and a network compete, and a network is served like any other model."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import polars as pl
import pytest
from _drive import CHEAP, COMMAND, LEAN, Ended, State, Workspace, answering

SMALL = '[train.neural]\narchitecture = "mlp"\nwidth = 16\nepochs = 3\nbatch_rows = 64\n'
BOTH = 'families = ["xgboost", "neural"]\nensemble = true\n'
QUICK = "[train.xgboost]\nrounds = 20\n"
NETWORK = 'families = ["neural"]\n'


def configuration(workspace: Workspace, name: str, train: str, more: str = "") -> Path:
    """Write the configuration of another model on the same data."""
    path = workspace.folder / f"{name}.toml"
    path.write_text(
        f'{CHEAP}[model]\nname = "{name}"\n'
        '[data]\nsource = "data/*.parquet"\ntarget = "defaulted"\ntime = "applied_on"\n'
        f"[train]\n{train}{QUICK}{SMALL}{more}"
    )
    return path


def evergreen(workspace: Workspace, command: str, config: Path, *arguments: str | Path) -> Ended:
    """Run a command on a configuration."""
    return workspace.run(COMMAND, command, config, *arguments)


@pytest.fixture(scope="module")
def contest(trained: State) -> tuple[Workspace, Path, Ended]:
    """Give a workspace after a retrain of both families, its configuration, and how the command ended."""
    workspace = trained.restore()
    config = configuration(workspace, "both", BOTH)
    return workspace, config, evergreen(workspace, "retrain", config, "--json", *LEAN)


def test_both_families_are_trained_and_compared(contest: tuple[Workspace, Path, Ended]) -> None:
    """A retrain with both families trains each, chooses, and its report sets one beside the other."""
    workspace, _, ended = contest
    outcome = ended.answer
    page = (workspace.root / "reports" / "both" / f"{outcome['run_id']}.html").read_text()
    table = page.partition('id="families"')[2].partition("</table>")[0]
    rows = re.findall(r"<tr[^>]*><td>(\w+)</td>.*?</tr>", table.partition("<tbody>")[2])

    assert ("PROMOTE", "1") == (outcome["verdict"]["decision"], outcome["version"])
    assert {"train", "train neural", "choose"} < set(outcome["stages"])
    assert ["xgboost", "neural"] == rows
    assert 1 == len(re.findall(r"✓ chosen", table)) or 2 == len(re.findall(r"✓ \d+% of the mean", table))
    assert {"Learning curve (xgboost)", "Learning curve (neural)"} == set(re.findall(r"Learning curve \(\w+\)", page))
    assert [(3,)] == workspace.query(
        "SELECT COUNT(DISTINCT step) FROM metrics WHERE key = 'validation_neural_logloss' "
        f"AND run_uuid = '{outcome['run_id']}'"
    )


def test_a_second_run_of_both_comes_from_the_caches(contest: tuple[Workspace, Path, Ended]) -> None:
    """The same data again: a plan finds nothing to do, and no family is trained."""
    workspace, config, _ = contest
    plan = evergreen(workspace, "plan", config, "--json").answer
    outcome = evergreen(workspace, "retrain", config, "--json", *LEAN).answer

    assert "nothing is new, every stage is cached" == plan["summary"]
    assert re.search(
        r"Network: 1 worker, .* parameters", next(s["why"] for s in plan["stages"] if s["name"] == "train neural")
    )
    assert "HOLD" == outcome["verdict"]["decision"]
    assert {True} == {
        outcome["stages"][name]["cached"] for name in ("train", "train neural", "choose", "compress", "evaluate")
    }


def test_a_network_answers_alike_from_a_file_and_from_a_server(trained: State, tmp_path: Path) -> None:
    """A network in production gives files and callers the same predictions, with the spread of its submodels."""
    workspace = trained.restore()
    more = "spread = true\nsubmodels = 4\nbins = 8\nembedding = 4\n"
    config = configuration(workspace, "nets", NETWORK, more.replace("spread", "spread"))
    config.write_text(config.read_text().replace('"mlp"', '"tabm-mini"'))
    outcome = evergreen(workspace, "retrain", config, "--json", *LEAN).answer
    source = sorted(workspace.data.glob("*.parquet"))[-1]
    scored = evergreen(workspace, "predict", config, source, tmp_path / "scored.parquet", *LEAN)
    rows = pl.read_parquet(source).head(20)
    columns = [name for name in rows.columns if name != "defaulted"]
    command = [str(COMMAND), "serve", str(config), "--port", "0"]
    with answering(command, workspace.environment, tmp_path / "log", re.compile(r"answers at (http://\S+)")) as found:
        sent = {"dataframe_split": {"columns": columns, "data": [list(row) for row in as_json(rows, columns)]}}
        answer = httpx.post(f"{found[1]}/invocations", json=sent)
    served = pl.DataFrame(answer.json()["predictions"])
    offline = pl.read_parquet(tmp_path / "scored.parquet").head(20)

    assert ("PROMOTE", 0) == (outcome["verdict"]["decision"], scored.code), scored.stderr
    assert ["prediction", "probability", "prediction_spread"] == served.columns
    for name in ("probability", "prediction_spread"):
        assert offline.get_column(name).to_list() == pytest.approx(served.get_column(name).to_list(), abs=1e-6)
    assert 0 < served.get_column("prediction_spread").min() < 0.5  # type: ignore[operator]


def test_parameters_of_a_network_are_searched(trained: State) -> None:
    """A network's trials are runs below the retrain's, what they find is planned and trained, and a plan knows both."""
    workspace = trained.restore()
    config = configuration(workspace, "sought", NETWORK, "submodels = 2\nbins = 8\n[train.search]\ntrials = 3\n")
    config.write_text(config.read_text().replace('"mlp"', '"tabm-mini"'))
    outcome = evergreen(workspace, "retrain", config, "--json", *LEAN).answer
    plan, longer = (
        evergreen(workspace, "plan", config, "--json", "--set", f"train.search.trials={trials}").answer
        for trials in (3, 4)
    )
    why = next(stage["why"] for stage in plan["stages"] if stage["name"] == "search neural")

    assert ("PROMOTE", {"search neural", "train neural"}) == (
        outcome["verdict"]["decision"],
        {"search", "search neural", "train", "train neural"} & set(outcome["stages"]),
    )
    assert "nothing is new, every stage is cached" == plan["summary"]
    assert re.search(r"(Trial|No parameters are better) .* all that were asked for\.$", why)
    assert longer["summary"].startswith("work starts at search neural: trials are left to do; Network: 1 worker, ")
    assert [(3, 3)] == workspace.query(
        "SELECT COUNT(*), COUNT(DISTINCT r.name) FROM runs r JOIN tags t ON t.run_uuid = r.run_uuid "
        f"WHERE t.key = 'mlflow.parentRunId' AND t.value = '{outcome['run_id']}' AND r.name LIKE 'neural trial %'"
    )


def as_json(rows: pl.DataFrame, columns: list[str]) -> list[tuple[object, ...]]:
    """Return rows with dates as text."""
    dates = [name for name in columns if rows.schema[name].is_temporal()]
    return rows.select(columns).with_columns(pl.col(dates).cast(pl.String)).rows()


def test_a_network_that_cannot_be_divided_is_one_line(trained: State) -> None:
    """A network that asks for more workers than there are ends the run with what to change; nothing is published."""
    workspace = trained.restore()
    config = configuration(workspace, "wrong", NETWORK)
    before = workspace.published()
    ended = evergreen(workspace, "retrain", config, *LEAN, "--set", "train.neural.parallelism=pipeline")

    assert (2, "") == (ended.code, ended.stdout)
    assert (
        'evergreen: train.neural.parallelism = "pipeline" divides a network among workers, but got 1. '
        "Start more workers, or leave it out."
    ) == ended.stderr.splitlines()[-1]
    assert before == workspace.published()
