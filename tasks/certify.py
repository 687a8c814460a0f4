"""Certify: the best of the smaller forms that is proven, on the holdout, to be as good as the candidate."""

import functools

from infra.clusters import client_of, on_one_worker
from infra.storage import Ref
from tasks import _certify, _decide, _evaluate, _metrics, _split
from tasks._cache import key_of
from tasks._candidate import BUNDLE_CODE, with_file
from tasks._certify import (
    CERTIFICATE_FILE,
    CERTIFICATES,
    Certificate,
    Certified,
    certify_files,
    certify_first,
    choice_text,
    fates,
)
from tasks._compress import CompressConfig, Frontier, Variant
from tasks._encode import Encoded
from tasks._split import SplitRule
from tasks.evaluate import scored
from tasks.stage import Run, stage

MAX_WHY_CHARS = 2000
VARIANT_TAG, FRONTIER_TAG = "evergreen.variant", "evergreen.frontier"


@stage(
    cached=True,
    code=(_certify, _evaluate, _metrics, _decide, _split, *BUNDLE_CODE),
    libraries=("scipy", "xgboost", "onnxruntime"),
)
def certify(
    run: Run,
    frontier: Frontier,
    encoded: Encoded,
    rules: tuple[SplitRule, ...],
    metric: str,
    config: CompressConfig,
) -> Certified:
    """Hold the variants against the candidate in their order; the first that is proven goes on, else the candidate.

    Args:
        run: where this runs.
        frontier: the variants.
        encoded: the rows of this run.
        rules: what holds a row out: the split of this run.
        metric: the metric of the verdict.
        config: the tolerance.
    """
    client = client_of(run.cluster)

    @functools.cache
    def scores(index: int) -> tuple[Ref, ...]:
        return scored(run, frontier.variants[index].bundle, encoded, encoded, rules, "certify")

    def certificate_of(index: int, alpha: float) -> Certificate:
        files = (scores(0), scores(index))
        return on_one_worker(client, certify_files, run.store, frontier, index, files, encoded, metric, config, alpha)

    lossless = [i for i, variant in enumerate(frontier.variants) if variant.is_lossless]
    index, certificates = certify_first(frontier.ranking, certificate_of, config.confidence, lossless)
    bundle = frontier.variants[index].bundle
    if index:
        bundle = with_file(run.store, bundle, CERTIFICATE_FILE, CERTIFICATES.dump_json(certificates[-1], indent=1))
    sentence = choice_text(frontier, index, certificates)
    run.reporter.noted(sentence)
    return Certified(bundle, index, certificates, sentence)


def log_variants(run: Run, frontier: Frontier, certified: Certified) -> None:
    """Make each variant a run below this one in MLflow, once: a run whose stages were cached finds them below another.

    One that a killed process has left out is made up for.
    """
    if len(frontier.variants) == 1:
        return  # the run itself tells all of it
    key = key_of(frontier, certified)
    known = {tags[VARIANT_TAG] for tags in run.tracking.tags_of_runs(FRONTIER_TAG, key)}
    for number, (variant, (fate, why)) in enumerate(zip(frontier.variants, fates(frontier, certified), strict=True)):
        if str(number) in known:
            continue
        tags = {VARIANT_TAG: str(number), "evergreen.model": run.model, "evergreen.state": fate.upper()}
        run_id = run.tracking.start_run(f"variant {variant.name}", tags, parent=run.run_id)
        run.tracking.log_params(
            run_id, {"name": variant.name, "technique": variant.technique, "family": variant.family}
        )
        run.tracking.log_metrics(run_id, variant_metrics(variant, certified))
        # The key comes last: a run that has it is whole.
        run.tracking.set_tags(run_id, {**({"evergreen.why": why[:MAX_WHY_CHARS]} if why else {}), FRONTIER_TAG: key})
        run.tracking.finish(run_id, "FINISHED")


def variant_metrics(variant: Variant, certified: Certified) -> dict[str, float]:
    """Return what was measured of a variant, and the difference that was tested where it was."""
    measured = {name: float(value) for name, value in vars(variant.measured).items()}
    tests = (c.test for c in certified.certificates if c.variant == variant.name)
    tested = {f"{t.metric}_{side}": getattr(t, side) for t in tests for side in ("difference", "low", "high")}
    return {"loss": variant.loss, **measured, **tested}
