"""What the command line shows of a model: an outcome, its status, its history, its plan."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

from flows.config import RetrainConfig
from flows.models import find_models
from infra.ledger import Ledger, Row
from infra.services import running
from infra.serving.target import read_reports, read_target
from infra.settings import Settings
from infra.storage import Store
from tasks._metrics import gain
from tasks._versions import champion_of, list_versions


def command_name() -> str:
    """Return how this command is called from here: its name if the shell finds it, else where it is."""
    called = Path(sys.argv[0])
    found = shutil.which("evergreen")
    if called.name != "evergreen" or (found and Path(found).resolve() == called.resolve()):
        return "evergreen"
    return os.path.relpath(called)


def outcome_text(outcome: dict[str, Any], config: Path) -> str:
    """Return a retrain's outcome for people: verdict, metrics of both, where the report is, and what comes next."""
    verdict, metrics, rows = outcome["verdict"], outcome["metrics"], outcome["rows"]
    lines = ["", f"{verdict['decision']}  version {outcome['version']} of {outcome['model']}"]
    lines += [f"  {reason}" for reason in verdict["reasons"]]
    lines += ["", *_metric_lines(metrics["challenger"], metrics["champion"]), ""]
    lines += [
        f"Data      {rows['files']} files, {rows['new_files']} new; {rows['total']:,} rows: {rows['train']:,} to "
        f"train, {rows['validation']:,} to stop, {rows['holdout']:,} held out",
        f"Champion  {'version ' + outcome['champion_version'] if outcome['champion_version'] else 'none'}",
        f"Report    {outcome['artifacts']['report']}",
        f"MLflow    {outcome['artifacts']['mlflow_run']}",
        f"More      {command_name()} history {config}",
    ]
    return "\n".join(lines)


def _metric_lines(challenger: dict[str, float], champion: dict[str, float] | None) -> list[str]:
    lines = [f"  {'metric':<24}{'challenger':>12}{'champion':>12}"]
    for name, value in challenger.items():
        before = champion.get(name) if champion else None
        shown = f"{before:>12.4f}" if before is not None else f"{'-':>12}"
        better = gain(name, value, before) if before is not None else None
        word = "" if not better else "  better" if better > 0 else "  worse"
        lines.append(f"  {name:<24}{value:>12.4f}{shown}{word}")
    return lines


def compressed_text(done: dict[str, Any], config: Path) -> str:
    """Return the forms of a version for people: how small and how fast each is, and what became of it."""
    whole = done["variants"][0]
    lines = ["", f"Version {done['of_version']} of {done['model']}", ""]
    lines.append(f"  {'form':<34}{'bytes':>12}{'smaller':>9}{'one row':>10}{'faster':>8}{'rows/s':>12}  ")
    for form in done["variants"]:
        smaller = whole["model_bytes"] / form["model_bytes"]
        faster = whole["row_p50_us"] / form["row_p50_us"]
        fate = f"{form['fate']}: {form['why']}" if form["why"] else form["fate"]
        name, size, row = form["name"][:33], form["model_bytes"], form["row_p50_us"]
        rate = form["rows_per_second"]
        lines.append(
            f"  {name:<34}{size:>12,}{smaller:>8.1f}x{row:>7.0f} \N{MICRO SIGN}s{faster:>7.1f}x{rate:>12,.0f}  {fate}"
        )
    lines += [f"  {f['technique'].replace('_', ' ')}: {f['reason']}" for f in done["failures"]]
    lines += ["", done["sentence"]]
    if done["version"] == done["of_version"]:
        lines.append("It stays as it is.")
    else:
        to = f"{command_name()} rollback {config} --to {done['version']}"
        lines += [f"Registered as version {done['version']}.", f"To put it in production: {to}"]
    return "\n".join(lines)


def status_of(config: RetrainConfig, path: Path) -> dict[str, Any]:
    """Return what is in production."""
    store, ledger = _open(config, path)
    model = config.model.name
    champion = champion_of(store, ledger, model)
    rows = ledger.rows()
    since = next((row.at for row in reversed(rows) if row.action != "verdict"), None)
    target = read_target(store, model)
    return {
        "model": model,
        "champion_version": champion.version if champion else None,
        "since": since,
        "previous_version": ledger.previous(),
        "versions": list_versions(store, model),
        "metrics": champion.metrics if champion else None,
        "train_rows": champion.num_train_rows if champion else None,
        "run_id": champion.run_id if champion else None,
        "released_version": target.version if target else None,
        "servers": [{"url": r.url, "version": r.version, "refused": r.refused} for r in read_reports(store, model)],
        "last_verdict": _row(rows[-1]) if rows else None,
        "root": store.root,
    }


def status_text(found: dict[str, Any]) -> str:
    """Return a status for people."""
    if found["champion_version"] is None:
        return f"{found['model']}: no version in production yet. Registered: {', '.join(found['versions']) or 'none'}."
    lines = [
        f"{found['model']}: version {found['champion_version']} in production since {found['since']}",
        f"  previous   {found['previous_version'] or 'none'}",
        f"  trained on {found['train_rows']:,} rows, run {found['run_id']}",
        *(f"  {name:<24}{value:>10.4f}" for name, value in found["metrics"].items()),
    ]
    lines += [
        f"  serving    {server['url']} answers with version {server['version']}"
        + (f", refused {server['refused']}" if server["refused"] else "")
        for server in found["servers"]
    ] or ["  serving    no process; start one with evergreen serve"]
    return "\n".join([*lines, f"  storage    {found['root']}"])


def platform_of(folder: Path) -> dict[str, Any]:
    """Return the servers of a folder and what is in production of each of its models."""
    from flows.up import state_of

    found = running(state_of(folder))
    servers = {"prefect": found.prefect_ui_url, "mlflow": found.mlflow_url} if found else None
    models = [{**status_of(model.config, model.path), "config": str(model.path)} for model in find_models(folder)]
    return {"folder": str(folder.absolute()), "services": servers, "models": models}


def platform_text(found: dict[str, Any]) -> str:
    """Return a folder's servers and models for people."""
    servers = found["services"]
    lines = (
        [f"Prefect   {servers['prefect']}", f"MLflow    {servers['mlflow']}"]
        if servers
        else [f"Nothing runs. Start it: {command_name()} up {found['folder']}"]
    )
    return "\n\n".join(["\n".join(lines), *(status_text(model) for model in found["models"])])


def history_of(config: RetrainConfig, path: Path) -> list[dict[str, Any]]:
    """Return the rows of the ledger from the first to the last."""
    _, ledger = _open(config, path)
    return [_row(row) for row in ledger.rows()]


def history_text(rows: list[dict[str, Any]]) -> str:
    """Return a history for people."""
    if not rows:
        return "Nothing has happened yet. Run evergreen retrain."
    lines = [f"{'when':<26}{'what':<10}{'version':<9}why"]
    for row in rows:
        decision = row["details"].get("decision", "") if row["action"] == "verdict" else row["action"]
        lines.append(f"{row['at']:<26}{decision.lower():<10}{row['version'] or '-':<9}{row['reason']}")
    return "\n".join(lines)


def maintained_text(done: dict[str, Any]) -> str:
    """Return what was removed for people."""
    verb = "would be removed" if done["is_dry_run"] else "removed"
    lines = [f"{done['model']}: {_mebibytes(done['num_bytes'])} {verb}."]
    lines += [
        f"  {len(group['names']):>6,} {group['kind']:<16}{_mebibytes(group['num_bytes']):>12}  {group['why']}"
        for group in done["groups"]
    ]
    if waiting := sum(group["num_bytes"] for group in done["waiting"]):
        lines.append(f"  {_mebibytes(waiting)} more are needed by nothing, and go at a later run.")
    return "\n".join([*lines, *(f"  {note}" for note in done["notes"])])


def collected_text(done: dict[str, Any]) -> str:
    """Return what goes of the storage, and what stays, for people."""
    verb = "would be removed" if done["is_dry_run"] else "removed"
    lines = [f"{done['model']}: {_mebibytes(done['num_bytes'])} {verb}."]
    lines += [f"  {'':<20}{'goes':>20}{'waits':>20}{'stays':>20}"]
    for kind in done["kinds"]:
        cells = (f"{kind[what]:,} {_mebibytes(kind[f'{what}_bytes']):>12}" for what in ("goes", "waits", "stays"))
        lines.append(f"  {kind['kind']:<20}" + "".join(f"{cell:>20}" for cell in cells))
    if any(kind["waits"] for kind in done["kinds"]):
        lines.append("  What waits is needed by nothing, and goes at a later call, a grace period after the first.")
    return "\n".join([*lines, *(f"  {note}" for note in done["notes"])])


def _mebibytes(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:,.1f} MiB"


def plan_text(planned: dict[str, Any], *, with_files: bool = False) -> str:
    """Return a plan for people, every source file with it if asked for."""
    lines = [f"{planned['model']}: {planned['summary']}", ""]
    lines += [f"  {stage['name']:<10}{stage['action']:<8}{stage['why']}" for stage in planned["stages"]]
    for file in planned["files"] if with_files else ():
        lines += ["", f"{file['file']}: {file['origin']}"]
        lines += [f"  {name:<10}{file[name]}" for name in ("profile", "encode")]
        lines += [f"  {'keys':<10}{' '.join(file['keys'])}"]
    return "\n".join(lines)


def _open(config: RetrainConfig, path: Path) -> tuple[Store, Ledger]:
    store = Store(Settings().locate(path).root)
    return store, Ledger(store, config.model.name)


def _row(row: Row) -> dict[str, Any]:
    return {
        "sequence": row.sequence,
        "at": row.at,
        "action": row.action,
        "version": row.version,
        "previous": row.previous,
        "run_id": row.run_id,
        "reason": row.reason,
        "author": row.author,
        "details": row.details,
    }
