"""What every training ends with: what is chosen on the validation rows, and the golden predictions of a bundle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from infra.bundle.model import Bundle
from infra.bundle.predictor import Predictor
from infra.bundle.schema import Schema
from infra.bundle.vocabulary import Vocabulary
from infra.storage import Store
from tasks._candidate import Candidate
from tasks._encode import TARGET, WEIGHT
from tasks._learning import LearningJob, side_rows
from tasks._metrics import best_threshold
from tasks._readers import read_file, read_schema
from tasks._reporting import Usage
from tasks._snapshot import SourceFile
from tasks._split import VALIDATION

NUM_GOLDEN = 20
GOLDEN_SCAN = 200


@dataclass(frozen=True)
class Trained:
    """What a member answers: what it took and, the first one, the candidate."""

    usage: Usage
    candidate: Candidate | None = None


def job_vocabulary(store: Store, job: LearningJob) -> Vocabulary:
    """Return the vocabulary of a job's shards, cut to the columns of its schema."""
    whole = Vocabulary.from_json(store.get(job.encoded.vocabulary).decode())
    used = {feature.column for feature in job.encoded.schema.features if feature.is_categorical}
    return Vocabulary({column: values for column, values in whole.values.items() if column in used})


def finished(store: Store, job: LearningJob, bundle: Bundle, pilot: Predictor) -> Bundle:
    """Return a bundle with what is chosen on the validation rows, and its own golden predictions.

    A binary model gets its threshold, a regression its prediction interval. Both come from the scores of `pilot`, the
    same model before it was trained on the validation rows too.
    """
    if bundle.schema.task == "binary" or (bundle.schema.task == "regression" and job.interval is not None):
        found = validation_scores(store, job, replace(bundle, predictor=pilot))
        bundle = judged_by(bundle, *found, job.interval)
    return bundle.with_golden(golden_rows(job.files, bundle.schema))


def judged_by(
    bundle: Bundle,
    labels: NDArray[Any],
    scores: NDArray[np.float32],
    weights: NDArray[Any] | None,
    interval: float | None,
) -> Bundle:
    """Return a bundle with what is chosen on rows from which the model of these scores has not learnt.

    Of a binary model that is the threshold, of a regression the half-width of an interval that holds such a share.
    """
    if bundle.schema.task == "binary":
        return replace(bundle, threshold=best_threshold(labels, scores, weights=weights))
    if bundle.schema.task == "regression" and interval is not None:
        return replace(bundle, half_width=conformal_half_width(labels - scores, interval))
    return bundle


def conformal_half_width(residuals: NDArray[Any], share: float) -> float:
    """Return the half-width that holds a share of new rows like these.

    Split conformal prediction (Lei, G'Sell, Rinaldo, Tibshirani and Wasserman 2018, algorithm 2): the
    ceil((n + 1) share)-th smallest absolute residual of rows that the model was not trained on. With two phases the
    promise is that of the pilot, and the shipped model, which has seen more, is as a rule a little closer. After
    drift an interval holds fewer; the holdout shows how many.

    >>> conformal_half_width(np.array([1.0, -2.0, 3.0, -4.0]), 0.75)
    4.0
    """
    ordered = np.sort(np.abs(residuals))
    rank = min(len(ordered), int(np.ceil((len(ordered) + 1) * share)))
    return float(ordered[rank - 1])


def validation_scores(
    store: Store, job: LearningJob, bundle: Bundle
) -> tuple[NDArray[Any], NDArray[np.float32], NDArray[Any] | None]:
    """Return labels, scores and weights (None: all alike) of the validation rows, shape (rows,)."""
    labels, scores, weights = [], [], []
    for shard in job.encoded.shards:
        rows = side_rows(store, job, shard, VALIDATION)
        labels.append(rows.get_column(TARGET).to_numpy())
        scores.append(bundle.scores(rows))
        weights += [rows.get_column(WEIGHT).to_numpy()] if WEIGHT in rows.columns else []
    return np.concatenate(labels), np.concatenate(scores), np.concatenate(weights) if weights else None


def golden_rows(files: Sequence[SourceFile], schema: Schema) -> pl.DataFrame:
    """Return a few raw rows, spread over the first rows of a file, as a caller would send them in JSON."""
    names = [column.name for column in schema.inputs]
    stored = [name for name in names if name in read_schema(files[0])]
    frame = read_file(files[0], columns=stored).head(GOLDEN_SCAN)
    frame = frame.with_columns(pl.lit(None, dtype=pl.String).alias(name) for name in names if name not in stored)
    dates = [n for n in names if frame.schema[n].is_temporal()]
    frame = (
        frame.with_columns(pl.col(dates).cast(pl.Datetime("us")).dt.to_string("%Y-%m-%dT%H:%M:%S%.f"))
        if dates
        else frame
    )
    return frame.gather_every(max(1, frame.height // NUM_GOLDEN)).head(NUM_GOLDEN).select(names)
