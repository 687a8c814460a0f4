"""What a training will be, in the counts by which the planner predicts its cost."""

from __future__ import annotations

from infra.bundle.vocabulary import Vocabulary
from tasks._costs import Workload
from tasks._encode import Encoded
from tasks._profile import Profile
from tasks._sample import Sample
from tasks._split import SideCounts
from tasks._train import MAX_VALIDATION_ROWS, TrainConfig

SPARSE_SHARE = 0.8
"""XGBoost keeps a column in which more is missing in another way."""


def workload_of(
    encoded: Encoded, counts: SideCounts, rows: Sample, seen: Profile, config: TrainConfig, vocabulary: Vocabulary
) -> Workload:
    """Return the counts of a training: from the schema, the sizes of shards and sides, and the profile."""
    schema = encoded.schema
    coded = [feature.column for feature in schema.features if feature.is_categorical]
    # Codes are never missing: what is not known has one of its own.
    missing = [missing_share(seen, feature.column) for feature in schema.features if not feature.is_categorical]
    validation = min(counts.validation, MAX_VALIDATION_ROWS)
    used = rows.num_rows + (validation if config.include_validation else 0)
    return Workload(
        num_train_rows=rows.num_rows,
        num_validation_rows=validation,
        num_numeric=len(missing),
        vocabulary_sizes=tuple(len(vocabulary.values.get(column, ())) + 1 for column in coded),
        num_classes=len(schema.labels) if schema.task == "multiclass" else 1,
        rounds=config.xgboost.rounds,
        max_depth=config.xgboost.max_depth,
        max_bin=config.xgboost.max_bin,
        num_shards=len(encoded.shards),
        largest_shard_rows=max(shard.num_rows for shard in encoded.shards),
        has_weights=rows.rule.has_weights,
        includes_validation=config.include_validation,
        missing_share=sum(missing) / max(1, len(schema.features)),
        used_share=min(1.0, used / max(1, encoded.num_rows)),
        has_sparse_feature=any(share > SPARSE_SHARE for share in missing),
    )


def missing_share(seen: Profile, column: str) -> float:
    """Return the share of a column's rows that have no value."""
    found = seen.columns.get(column)
    return found.num_missing / max(1, found.num_rows) if found else 0.0
