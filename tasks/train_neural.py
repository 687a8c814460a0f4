"""Train networks: the second family of candidates, on a gang of the cluster's workers."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import replace

from infra.bundle.vocabulary import Vocabulary
from infra.clusters import ClusterConfig, client_of, config_of
from infra.errors import InputError
from infra.gang import GPU, GangShape, run_gang
from infra.rendezvous import Rendezvous
from infra.storage import Store
from infra.worker_shapes import WorkerShape
from tasks import _candidate, _encode, _finish, _gaps, _learning, _metrics, _origin, _sample, _split, _train
from tasks._candidate import BUNDLE_CODE, Candidate
from tasks._continue import restarted_network
from tasks._encode import Encoded
from tasks._finish import Trained
from tasks._neural.config import NeuralConfig
from tasks._neural.inputs import inputs_of
from tasks._neural.job import NeuralJob
from tasks._neural.plan import NetworkPlan, plan_network
from tasks._profile import Profile
from tasks._sample import Sample
from tasks._snapshot import Snapshot
from tasks._train import OBJECTIVES, TrainConfig, validation_share
from tasks._versions import ModelVersion
from tasks.split import Split
from tasks.stage import Run, stage
from tasks.train import TrainingProgress, machines_of

NEEDED = ("torch", "tabm", "rtdl_num_embeddings", "onnx", "onnxscript", "safetensors")
"""Packages of the extra `neural`."""
MODULES = ("checkpoint", "collective", "config", "export", "fit", "inputs", "network", "parallel", "rows")
"""Of `tasks._neural`: what decides which network a job gives."""


def require_torch() -> None:
    """Raise an InputError if what networks take is not installed."""
    absent = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if absent:
        raise InputError(
            f'train.families = ["neural"] needs packages that are not installed, but got none of {", ".join(absent)}. '
            "Install them with pip install 'evergreen[neural]', here and on every worker, or leave the family out."
        )


def network_job(
    name: str,
    store: Store,
    snapshot: Snapshot,
    encoded: Encoded,
    split: Split,
    rows: Sample,
    seen: Profile,
    config: TrainConfig,
    shapes: Sequence[WorkerShape],
) -> tuple[NeuralJob, NetworkPlan]:
    """Return all that members need to train a network, and how it is planned.

    Raises:
        InputError: what it takes is not installed or not there, or the network fits nowhere.
    """
    require_torch()
    schema = encoded.schema
    vocabulary = Vocabulary.from_json(store.get(encoded.vocabulary).decode())
    inputs = inputs_of(schema, vocabulary, seen, config.neural.bins)
    num_outputs = len(schema.labels) if schema.task == "multiclass" else 1
    plan = plan_network(
        inputs,
        config.neural,
        num_outputs,
        rows.num_rows,
        split.counts.validation,
        machines_of(shapes),
        config.plan,
    )
    job = NeuralJob(
        model=name,
        encoded=encoded,
        files=snapshot.units[:1],
        rule=split.rule,
        sample=rows,
        include_validation=config.include_validation,
        seed=config.seed,
        interval=config.interval,
        threads=plan.threads,
        facts={"model": name, "snapshot": snapshot.fingerprint, "seed": config.seed},
        validation_share=validation_share(split.counts.validation),
        members=plan.members,
        device=plan.device,
        config=config.neural,
        inputs=inputs,
        parallelism=plan.parallelism,
        batch_rows=plan.batch_rows,
        micro_batch_rows=plan.micro_batch_rows,
        window_rows=plan.window_rows,
        max_epochs=plan.max_epochs,
    )
    return job, plan


def planned_as(
    name: str,
    store: Store,
    snapshot: Snapshot,
    encoded: Encoded,
    split: Split,
    rows: Sample,
    seen: Profile,
    config: TrainConfig,
    shapes: Sequence[WorkerShape],
) -> Callable[[NeuralConfig], tuple[NeuralJob, NetworkPlan]]:
    """Return what plans the training anew with other parameters: its inputs and its memory depend on them."""

    def planned(neural: NeuralConfig) -> tuple[NeuralJob, NetworkPlan]:
        other = config.model_copy(update={"neural": neural})
        return network_job(name, store, snapshot, encoded, split, rows, seen, other, shapes)

    return planned


def restarted_job(
    name: str,
    store: Store,
    snapshot: Snapshot,
    encoded: Encoded,
    split: Split,
    rows: Sample,
    seen: Profile,
    config: TrainConfig,
    shapes: Sequence[WorkerShape],
    champion: ModelVersion | None,
) -> tuple[NeuralJob, NetworkPlan, str]:
    """Return the job of a network with what it keeps of the champion, its plan, and a note on what that is."""
    kept = restarted_network(config, champion)
    job, plan = network_job(name, store, snapshot, encoded, split, rows, seen, kept.config, shapes)
    return replace(job, epochs=kept.epochs, refit_of=kept.refit_of), plan, kept.note


@stage(
    cached=True,
    code=(
        *(f"tasks._neural.{name}" for name in MODULES),
        _gaps,
        _candidate,
        _encode,
        _finish,
        _learning,
        _metrics,
        _origin,
        _sample,
        _split,
        _train,
        *BUNDLE_CODE,
    ),
    libraries=("torch", "tabm", "rtdl_num_embeddings", "onnxruntime"),
)
def train_neural(run: Run, job: NeuralJob) -> Candidate:
    """Train a network on a gang; one that was interrupted goes on from its checkpoint."""
    from tasks._neural import checkpoint, fit  # torch, for those who train networks

    progress = TrainingProgress(run, f"neural_{OBJECTIVES[job.encoded.schema.task][1]}", stage="train neural")

    def args_of(_attempt: int, _members: int) -> tuple[object, ...]:
        found = checkpoint.newest(run.store, job, run.reporter.noted)
        if found is not None:
            run.reporter.noted(f"Training goes on after {found.progress.sentence}.")
            progress.take_up(found.progress.train_curve, found.progress.validation_curve)
        return run.store, job, found

    answers: list[Trained] = run_gang(
        client_of(run.cluster),
        shape_of(job, config_of(run.cluster)),
        fit.train,
        args_of,
        on_event=progress.show,
        on_note=run.reporter.noted,
    )
    progress.flush()
    candidate = answers[0].candidate
    assert candidate is not None, "the first member answers with one"
    checkpoint.clear(run.store, job)
    fullest = max(answer.usage.peak_bytes for answer in answers)
    candidate = replace(candidate, peak_bytes=fullest, seconds=answers[0].usage.seconds)
    run.reporter.noted(candidate.sentence)
    return candidate


def shape_of(job: NeuralJob, cluster: ClusterConfig) -> GangShape:
    """Return on which workers a job's members run, and where they meet.

    A network that is divided takes as many members as it was divided for; rows can be divided anew.
    """
    is_gpu = job.device != "cpu"
    return GangShape(
        job.members,
        least=1 if job.parallelism == "data" else 2,
        resource=GPU if is_gpu and cluster.address else None,
        is_isolated=is_gpu,
        meeting=Rendezvous,
        port=cluster.training_port,
    )
