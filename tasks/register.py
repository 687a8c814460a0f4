"""Register: an MLflow model version with its bundle, and links to data and run."""

import importlib.metadata
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from infra.bundle.model import Bundle, golden_frame
from infra.bundle.schema import Column, Schema
from infra.bundle.trees import Trees
from infra.tracking import column_signature, save_pyfunc
from tasks._candidate import BundleRef, copy_bundle
from tasks._decide import Verdict
from tasks._evaluate import Evaluation
from tasks._origin import Origin
from tasks._snapshot import Snapshot
from tasks._split import SplitRule
from tasks._versions import ModelVersion, find_by_bundle, keep_version
from tasks.stage import Run, stage

REQUIREMENTS = ("numpy", "pandas", "polars", "pyarrow")
BUNDLE_TAG = "evergreen.bundle"


@dataclass(frozen=True)
class Registered:
    """The version of a challenger."""

    version: ModelVersion
    is_reused: bool
    """Whether an earlier run registered the very same bundle."""


@stage()
def register(
    run: Run, challenger: Evaluation, verdict: Verdict, snapshot: Snapshot, rule: SplitRule, origin: Origin
) -> Registered:
    """Register the challenger's bundle, once: the same bundle keeps its version."""
    bundle = challenger.bundle
    known = find_by_bundle(run.store, run.model, bundle.digest)
    if known is not None:
        return Registered(known, is_reused=True)
    tags = {"evergreen.decision": verdict.decision, "evergreen.snapshot": snapshot.fingerprint}
    number, num_train_rows = published(run, bundle, tags)
    version = ModelVersion(
        model=run.model,
        version=number,
        run_id=run.run_id,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        bundle=bundle,
        rule=rule,
        snapshot=snapshot.fingerprint,
        file_keys=tuple(file.key for file in snapshot.files),
        num_train_rows=num_train_rows,
        metrics=challenger.metrics,
        origin=origin,
    )
    keep_version(run.store, version)
    return Registered(version, is_reused=False)


@stage()
def register_variant(run: Run, variant: Evaluation, of: ModelVersion) -> Registered:
    """Register another form of a version, once."""
    known = find_by_bundle(run.store, run.model, variant.bundle.digest)
    if known is not None:
        return Registered(known, is_reused=True)
    tags = {"evergreen.variant_of": of.version, "evergreen.snapshot": of.snapshot}
    number, _ = published(run, variant.bundle, tags)
    version = replace(
        of,
        version=number,
        run_id=run.run_id,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        bundle=variant.bundle,
        metrics=variant.metrics,
    )
    keep_version(run.store, version)
    return Registered(version, is_reused=False)


def published(run: Run, ref: BundleRef, tags: Mapping[str, str]) -> tuple[str, int]:
    """Put a bundle into MLflow's registry; return its version and the number of rows that its model has learnt from."""
    with tempfile.TemporaryDirectory() as name:
        data, folder = Path(name) / "bundle", Path(name) / "model"
        data.mkdir()
        copy_bundle(run.store, ref, data)
        bundle = Bundle.load(data)
        signature = column_signature(input_types(bundle.schema), output_types(bundle))
        save_pyfunc(folder, data, signature, requirements(bundle))
        # A run that died after this line left a version without our record of it: it is taken up again.
        left = next((v for v in run.tracking.versions(run.model) if v.tags.get(BUNDLE_TAG) == ref.digest), None)
        number = (
            left.version
            if left
            else run.tracking.register(run.run_id, run.model, folder, {BUNDLE_TAG: ref.digest, **tags})
        )
    return number, bundle.facts["num_train_rows"]


def requirements(bundle: Bundle) -> list[str]:
    """Return what the bundle's own code needs, pinned to the versions that made it."""
    of_trees = {"xgboost"} if Trees.family in bundle.families else set()
    of_graphs = {"onnxruntime"} if bundle.has_graphs else set()
    names = sorted({*REQUIREMENTS, *of_trees, *of_graphs})
    return [f"{name}=={importlib.metadata.version(name)}" for name in names]


def input_types(schema: Schema) -> dict[str, str]:
    """Return the MLflow type of every input column."""
    return {column.name: _mlflow_type(column) for column in schema.inputs}


def _mlflow_type(column: Column) -> str:
    if column.source_type == "integer" and not column.is_nullable:
        return "long"
    if column.source_type in ("integer", "number"):
        return "double"
    if column.source_type == "boolean" and not column.is_nullable:
        return "boolean"
    return "datetime" if column.source_type == "datetime" and column.date_format is None else "string"


def output_types(bundle: Bundle) -> dict[str, str]:
    """Return the MLflow type of every column of an answer."""
    answers = bundle.predict(golden_frame(bundle.golden[0]))
    return {name: "double" if dtype.is_numeric() else "string" for name, dtype in answers.schema.items()}
