"""The outcome of a retrain as JSON: a public interface, kept stable."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from tasks._decide import Decision
from tasks._story import Judged, Training
from tasks.stage import Run


@dataclass(frozen=True)
class Outcome:
    """What `evergreen retrain --json` prints as its last line, and what is stored with the run."""

    model: str
    run_id: str
    decision: Decision
    reasons: tuple[str, ...]
    version: str
    champion_version: str | None
    """The version in production after the run."""
    challenger: dict[str, float]
    champion: dict[str, float] | None
    """Metrics of both on the same holdout."""
    rows: dict[str, int]
    stages: dict[str, dict[str, Any]]
    plan: str
    artifacts: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """Return the public form."""
        raw = asdict(self)
        verdict = {"decision": raw.pop("decision"), "reasons": list(raw.pop("reasons"))}
        metrics = {"challenger": raw.pop("challenger"), "champion": raw.pop("champion")}
        order = (
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
        whole = {**raw, "verdict": verdict, "metrics": metrics}
        return {name: whole[name] for name in order}


def outcome_of(run: Run, training: Training, judged: Judged, report: str) -> Outcome:
    """Put a run's outcome together, and keep it with the run."""
    stages: dict[str, dict[str, Any]] = {}
    for stage in run.times:
        before = stages.get(stage.name, {"seconds": 0.0, "cached": True})
        stages[stage.name] = {
            "seconds": round(before["seconds"] + stage.seconds, 3),
            "cached": before["cached"] and stage.is_cached,
        }
    counts = training.counts
    outcome = Outcome(
        model=run.model,
        run_id=run.run_id,
        decision=judged.verdict.decision,
        reasons=judged.verdict.reasons,
        version=judged.version.version,
        champion_version=judged.champion_version,
        challenger=judged.challenger.metrics,
        champion=judged.champion.metrics if judged.champion else None,
        rows={
            "total": training.encoded.num_rows,
            "train": training.sample.num_rows,
            "validation": counts.validation,
            "holdout": judged.challenger.num_rows,
            "unlabelled": counts.unlabelled,
            "files": len(training.snapshot.files),
            "new_files": training.encoded.num_new,
        },
        stages=stages,
        plan=". ".join(training.plans),
        artifacts={"report": report, "mlflow_run": run.tracking.run_url(run.run_id)},
    )
    run.store.put(f"runs/{run.model}/{run.run_id}.json", json.dumps(outcome.to_json()).encode())
    run.tracking.log_dict(run.run_id, "outcome.json", outcome.to_json())
    run.tracking.log_metrics(run.run_id, {f"seconds_{name}": s["seconds"] for name, s in stages.items()})
    return outcome
