"""Which pictures a report shows, drawn from the scores of the holdout."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from infra.bundle.schema import Schema
from infra.storage import Store
from tasks import _plots
from tasks._candidate import Candidate
from tasks._certify import Certified, fates
from tasks._choose import Choice
from tasks._compress import Frontier
from tasks._decide import Comparison
from tasks._evaluate import Evaluation, labels_of, load_scores, score_matrix
from tasks._learning_curve import Curve, PowerLaw
from tasks._report import Picture
from tasks._sample import Sample


def draw(
    store: Store,
    schema: Schema,
    challenger: Evaluation,
    champion: Evaluation | None,
    comparison: Comparison | None,
    choice: Choice,
    frontier: Frontier,
    certified: Certified,
    tolerance: float,
    sample: Sample,
) -> tuple[Picture, ...]:
    """Return the pictures of a report; runs on a worker, where the scores are read."""
    pictures = []
    if comparison is not None:
        svg = _plots.metric_intervals(comparison.differences)
        pictures.append(Picture("Against the champion", svg, "Improvement with its interval; right of zero is better."))
    pictures += _quality(store, schema, challenger, champion)
    pictures += [_learning_curve(contender.candidate, choice) for contender in choice.contenders]
    if sample.curve is not None and sample.curve.fit is not None:
        pictures.append(Picture("Sample size", _sample_size(sample.curve, sample.curve.fit), sample.curve.sentence))
    candidate = choice.candidate
    names, shares = list(candidate.importance), list(candidate.importance.values())
    if names:
        pictures.append(
            Picture("Importance", _plots.importance(names, shares), "Share of the total gain of all splits.")
        )
    return (*pictures, *compression_pictures(frontier, certified, tolerance, candidate.loss))


def compression_pictures(frontier: Frontier, certified: Certified, tolerance: float, loss: str) -> Iterator[Picture]:
    """Draw the forms of a model, and the certificate of the last one that was tried; nothing of a model alone."""
    if len(frontier.variants) < 2:
        return
    forms = [
        _plots.Form(v.name, v.measured.model_bytes, v.measured.row_p50_us, v.loss, fate)
        for v, (fate, _) in zip(frontier.variants, fates(frontier, certified), strict=True)
    ]
    whole = frontier.variants[0].loss
    svg = _plots.frontier(forms, loss, whole + tolerance * abs(whole))
    note = (
        "Validation loss of the training's first phase. Green: shipped; hollow: refused; grey: another one is at least "
        "as good in both; an arrow: far above."
    )
    yield Picture("Frontier", svg, note, "compression")
    if certified.certificates:
        last = certified.certificates[-1]
        tests = [(t.metric, t.difference, t.low, t.high, t.margin) for t in (last.test, *last.gates)]
        svg = _plots.certificate(tests, 1 - 2 * last.alpha)
        yield Picture("Certificate", svg, f"{last.variant} on {last.num_rows:,} rows of the holdout.", "certificate")


def _learning_curve(candidate: Candidate, choice: Choice) -> Picture:
    curve = _plots.learning_curve(
        candidate.train_curve,
        candidate.validation_curve,
        candidate.num_rounds - 1,
        candidate.loss,
        candidate.base_rounds,
        candidate.unit,
    )
    of_whom = f" ({candidate.family})" if len(choice.contenders) > 1 else ""
    return Picture(f"Learning curve{of_whom}", curve, _curve_caption(candidate))


def _sample_size(curve: Curve, fit: PowerLaw) -> str:
    fitted = [float(loss) for loss in fit(np.asarray(curve.grid, dtype=np.float64))]
    points = list(zip(curve.sizes, curve.losses, strict=True))
    return _plots.sample_size(points, curve.grid, (curve.low, fitted, curve.high), curve.chosen, curve.loss)


def _curve_caption(candidate: Candidate) -> str:
    if candidate.mode == "refit":
        return candidate.sentence
    limit = (
        ""
        if candidate.is_stopped or candidate.family == "neural"
        else f" The limit, {candidate.max_rounds:,}, ended it: raise train.xgboost.rounds."
    )
    phase = (
        "" if candidate.num_final_rows is None else " Of the first phase, which has not learnt from validation rows."
    )
    return f"The best {candidate.unit} is {candidate.num_rounds:,}.{limit}{phase}"


def _quality(store: Store, schema: Schema, challenger: Evaluation, champion: Evaluation | None) -> list[Picture]:
    table = load_scores(store, challenger.scores)
    labels, scores = labels_of(table), score_matrix(table)
    if schema.task == "regression":
        caption = "Predicted against actual, and how the errors spread."
        return [Picture("Residuals", _plots.residuals(labels, scores), caption)]
    if schema.task == "multiclass":
        svg = _plots.confusion_matrix(labels, scores, schema.labels)
        return [Picture("Confusion", svg, "Rows are actual classes, columns predicted ones.")]
    models = {"challenger": scores}
    curves = {"challenger": challenger.calibration}
    if champion is not None:
        models["champion"] = score_matrix(load_scores(store, champion.scores))
        curves["champion"] = champion.calibration
    return [
        Picture("Ranking", _plots.roc_and_pr(labels, models), "ROC and precision-recall curves on the holdout."),
        Picture("Calibration", _plots.calibration(curves), "Predicted probability against observed share."),
        Picture(
            "Scores",
            _plots.score_distribution(labels, scores, challenger.threshold),
            f"Scores by class, and the threshold {challenger.threshold:.3f} chosen on validation rows (best F1).",
        ),
    ]
