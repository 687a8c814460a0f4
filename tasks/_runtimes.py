"""What trees are shipped as: compact, and with two runtimes of which the number of rows decides.

Time is the processor's, of the thread that asks: both runtimes work in it alone, and what else the machine does counts
only through its caches.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from infra.bundle.blend import Blend
from infra.bundle.predictor import Predictor
from infra.bundle.session import SCORES, answers_of, session_of
from infra.bundle.trees import Trees
from infra.errors import InputError, RunError
from tasks._gaps import CHECKED_ROWS, with_gaps
from tasks._onnx_trees import Forest, forest_of, graphs_of, without_statistics

# B = rows, F = features.

TOLERANCE = 1e-5
"""Largest difference of a score to XGBoost's, over the largest score where that is above 1."""
BATCH_ROWS = tuple(4**power for power in range(8))
"""Numbers of rows at which both runtimes are timed."""
MAX_TURNS, MIN_TURNS = 15, 3
TURN_SECONDS = 2e-3
"""A turn repeats a call for so long: its first one finds the caches full of the other model."""
SIZE_SECONDS = 0.1
"""What the turns of one number of rows may take together, unless the fewest take longer."""
HANDICAP = 1.2
"""ONNX Runtime has to be faster by this to be chosen."""
HOPELESS = 1.5
"""So many times slower with two numbers of rows in a row, a runtime is not asked about more."""


@dataclass(frozen=True)
class Packaged:
    """A model as it is shipped."""

    predictor: Predictor
    notes: tuple[str, ...] = ()
    """Why trees have XGBoost alone, for people."""


@dataclass(frozen=True)
class Timing:
    """Shortest times of a call, in seconds."""

    num_rows: int
    few: float
    """Of ONNX Runtime."""
    many: float
    """Of XGBoost."""


def packaged(model: Predictor, rows_BF: NDArray[np.float32], clock: Callable[[], float] = time.thread_time) -> Packaged:
    """Return a model as it is shipped: trees compact, with both runtimes and a measured crossover.

    Trees that can't be converted, or answer otherwise after it, have XGBoost alone, and the notes say why. A blend's
    trees are treated alike; networks stay as they are.

    Args:
        model: what was trained.
        rows_BF: encoded rows to check and measure on, shape (rows, features), at least one.
        clock: returns seconds; see above for which.

    Raises:
        RunError: the compact trees answer otherwise.
    """
    if isinstance(model, Blend):
        parts = [packaged(part, rows_BF, clock) for _, part in model.parts]
        weights = [weight for weight, _ in model.parts]
        blend = Blend(tuple(zip(weights, (part.predictor for part in parts), strict=True)))
        return Packaged(blend, tuple(note for part in parts for note in part.notes))
    if not isinstance(model, Trees):
        return Packaged(model)
    compact = Trees(without_statistics(model.booster), is_compact=True)
    known = model.booster.inplace_predict(rows_BF[:CHECKED_ROWS], missing=np.nan)
    if not np.array_equal(known, compact.scores(rows_BF[:CHECKED_ROWS])):
        raise RunError(
            "Compact trees answer as the trained ones do, to the last bit, but got a difference="
            f"{np.abs(known - compact.scores(rows_BF[:CHECKED_ROWS])).max()}. Install the xgboost of constraints.txt."
        )
    try:
        forest = forest_of(compact.booster)
        both = replace(compact, graphs=graphs_of(forest))
        require_equal(both, edge_rows(rows_BF, forest))
    except (RunError, InputError) as error:
        return Packaged(compact, (str(error),))
    return Packaged(replace(both, crossover=crossover_of(timings_of(both, rows_BF, clock))))


def edge_rows(rows_BF: NDArray[np.float32], forest: Forest) -> NDArray[np.float32]:
    """Return CHECKED_ROWS rows like these, with what conversions stumble over.

    Values are missing or unknown (see `with_gaps`), infinite, equal to a threshold, or next to one.
    """
    found = with_gaps(np.resize(rows_BF, (CHECKED_ROWS, rows_BF.shape[1])))
    numbers = np.arange(CHECKED_ROWS)
    for every, value in ((13, np.inf), (17, -np.inf)):
        rows = numbers[::every]
        found[rows, rows // every % found.shape[1]] = value
    features, thresholds = forest.thresholds
    if len(features):
        for start, offset in ((0, None), (1, -np.inf), (2, np.inf)):
            rows = numbers[start::5]
            nodes = np.arange(len(rows)) * max(1, len(features) // len(rows)) % len(features)
            values = thresholds[nodes]
            found[rows, features[nodes]] = values if offset is None else np.nextafter(values, np.float32(offset))
    return found


def require_equal(trees: Trees, rows_BF: NDArray[np.float32]) -> None:
    """Raise a RunError if the two runtimes of trees differ on rows, together or alone."""
    assert trees.graphs is not None, "there are two to compare"
    known = np.asarray(trees.booster.inplace_predict(rows_BF, missing=np.nan))
    session = session_of(trees.graphs.whole, 1)
    whole = answers_of(session, [SCORES], rows_BF)[0]
    alone = [answers_of(session, [SCORES], rows_BF[i : i + 1])[0] for i in range(min(200, len(rows_BF)))]
    worst = float(np.abs(whole - known).max())
    if not worst <= TOLERANCE * max(1.0, float(np.abs(known).max())):
        raise RunError(
            f"Converted trees answer as XGBoost does, to within {TOLERANCE}, but got a difference={worst} on "
            f"{len(rows_BF):,} rows. They are served by XGBoost alone."
        )
    many = replace(trees, crossover=0).scores(rows_BF)
    num_other = int((whole != many).sum() + (np.concatenate(alone) != many[: len(alone)]).sum())
    if num_other:
        raise RunError(
            f"Trees answer the same in batches of any size, but got num_different={num_other} scores of "
            f"{len(rows_BF):,} rows. They are served by XGBoost alone."
        )


def timings_of(
    trees: Trees, rows_BF: NDArray[np.float32], clock: Callable[[], float] = time.thread_time
) -> list[Timing]:
    """Return how long both runtimes take with one thread, for ever more rows, until the one for few is hopeless."""
    booster = trees.booster.copy()
    few, many = (replace(trees, booster=booster, crossover=limit) for limit in (BATCH_ROWS[-1], 0))
    many.use_one_thread()
    for trees in (few, many):
        trees.scores(rows_BF[:1])  # the first call reads the graphs
    timings: list[Timing] = []
    for num_rows in BATCH_ROWS:
        rows = np.resize(rows_BF, (num_rows, rows_BF.shape[1]))
        timings.append(Timing(num_rows, *shortest([few, many], rows, clock)))
        if all(timing.few > HOPELESS * timing.many for timing in timings[-2:]) and len(timings) > 1:
            break
    return timings


def shortest(
    models: Sequence[Predictor], rows_BF: NDArray[np.float32], clock: Callable[[], float] = time.thread_time
) -> list[float]:
    """Return the shortest time of a call to each model, in seconds; they take turns, and have been asked before.

    What else the machine does only ever makes a call longer.
    """

    def once(model: Predictor, num_calls: int) -> float:
        start = clock()
        for _ in range(num_calls):
            model.scores(rows_BF)
        return (clock() - start) / num_calls

    start = clock()
    found = [[once(model, 1) for model in models]]
    calls = [max(1, int(TURN_SECONDS / max(seconds, 1e-9))) for seconds in found[0]]
    while len(found) < MIN_TURNS or (len(found) < MAX_TURNS and clock() - start < SIZE_SECONDS):
        found.append([once(model, num_calls) for model, num_calls in zip(models, calls, strict=True)])
    return [float(seconds) for seconds in np.min(found, axis=0)]


def crossover_of(timings: Sequence[Timing]) -> int:
    """Return up to how many rows ONNX Runtime should answer: where the worst ratio to the better one is least.

    Between two numbers of rows that were timed it lies where the ratio of both runtimes, a straight line in
    logarithms, is 1. ONNX Runtime counts as slower by HANDICAP: for hundreds of rows and more both take about as long,
    and where noise decides, the one that falls behind for still more rows is not to be chosen.

    >>> crossover_of([Timing(1, 1.0, 10.0), Timing(4, 4.0, 10.0), Timing(16, 16.0, 10.0)])
    8
    """
    ratios = HANDICAP * np.array([timing.few / timing.many for timing in timings])
    regrets = [max([*ratios[:cut], *(1 / ratios[cut:]), 1.0]) for cut in range(len(timings) + 1)]
    cut = int(np.argmin(regrets))
    if cut in (0, len(timings)):
        return timings[-1].num_rows if cut else 0
    below, above = (np.log(ratios[i]) for i in (cut - 1, cut))
    share = min(1.0, max(0.0, -below / (above - below))) if above > below else 0.5
    start, end = (np.log(timings[i].num_rows) for i in (cut - 1, cut))
    return int(np.exp(start + share * (end - start)) + 1e-9)
