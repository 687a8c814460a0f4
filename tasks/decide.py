"""Decide: the verdict on a challenger."""

from infra.bundle.vocabulary import Vocabulary
from infra.clusters import client_of, on_one_worker
from tasks import _decide, _metrics
from tasks._decide import Comparison, PromoteConfig, Verdict, judge
from tasks._encode import Encoded
from tasks._evaluate import Evaluation, slice_columns
from tasks._versions import withdrawn_version
from tasks.stage import Run, stage


@stage(cached=True, code=(_decide, _metrics))
def compare(
    run: Run, encoded: Encoded, challenger: Evaluation, champion: Evaluation, config: PromoteConfig, metric: str
) -> Comparison:
    """Compare both models on identical rows, with the noise of the difference."""
    vocabulary = Vocabulary.from_json(run.store.get(encoded.vocabulary).decode())
    slices = slice_columns(encoded.schema, vocabulary)
    return on_one_worker(
        client_of(run.cluster),
        _decide.compare,
        run.store,
        encoded.schema.task,
        metric,
        challenger,
        champion,
        config,
        slices,
        encoded.vocabulary,
    )


@stage()
def decide(
    run: Run,
    encoded: Encoded,
    challenger: Evaluation,
    champion: Evaluation | None,
    comparison: Comparison | None,
    config: PromoteConfig,
    metric: str,
    is_fresher: bool,
    broken_budgets: tuple[str, ...],
) -> Verdict:
    """Give the verdict with its reasons."""
    withdrawn = withdrawn_version(run.store, run.ledger, run.model, challenger.bundle.digest)
    return judge(
        *(encoded.schema.task, metric, challenger, champion, comparison, config, is_fresher, withdrawn),
        broken_budgets=broken_budgets,
    )
