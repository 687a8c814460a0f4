"""Train: candidates, each on a worker of the cluster."""

from typing import Any

from infra.bundle import encoder, model
from infra.clusters import ClusterConfig, client_of, cpu_count, on_one_worker
from tasks import _candidate, _encode, _metrics, _sample, _split, _train, _xgboost
from tasks._candidate import Candidate
from tasks._encode import Encoded
from tasks._sample import Sample
from tasks._snapshot import Snapshot
from tasks._train import MAX_VALIDATION_ROWS, Plan, TrainConfig, make_plan, validation_share
from tasks._xgboost import TrainingJob
from tasks.split import Split
from tasks.stage import Run, stage


def plan_training(encoded: Encoded, split: Split, rows: Sample, cluster: ClusterConfig) -> Plan:
    """Choose where the training runs."""
    # The workers of this machine share its cores, and only one of them trains.
    threads = cpu_count() if cluster.address is None else cluster.threads_per_worker or 1
    num_validation = min(split.counts.validation, MAX_VALIDATION_ROWS)
    return make_plan(rows.num_rows + num_validation, len(encoded.schema.features), threads)


def training_job(
    name: str, snapshot: Snapshot, encoded: Encoded, split: Split, rows: Sample, config: TrainConfig, plan: Plan
) -> TrainingJob:
    """Return all that a worker needs to train; the same inputs give the same job, and so the same model."""
    return TrainingJob(
        model=name,
        encoded=encoded,
        files=snapshot.units[:1],
        rule=split.rule,
        sample=rows,
        config=config.xgboost,
        refit=config.refit,
        seed=config.seed,
        interval=config.interval,
        threads=plan.threads,
        facts={"model": name, "snapshot": snapshot.fingerprint, "seed": config.seed},
        validation_share=validation_share(split.counts.validation),
    )


@stage(
    cached=True,
    code=(_xgboost, _candidate, _encode, _metrics, _sample, _split, _train, encoder, model),
    libraries=("xgboost",),
)
def train(run: Run, job: TrainingJob) -> Candidate:
    """Train XGBoost on one worker, in a stream over the shards."""

    def follow(event: dict[str, Any]) -> None:
        note = f"validation loss {event['loss']:.5f}" if "loss" in event else "again, on validation rows too"
        run.reporter.advanced("train", event["done"], event["total"], note)

    candidate = on_one_worker(client_of(run.cluster), _xgboost.train, run.store, job, on_event=follow)
    run.reporter.noted(candidate.sentence)
    return candidate
