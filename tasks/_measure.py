"""How fast models answer, and what memory they take, measured as they are served and in turns."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import psutil
from numpy.typing import NDArray

from infra.memory import give_back

if TYPE_CHECKING:
    from infra.bundle.predictor import Predictor

# B = rows, F = features.

MAX_TIMINGS, MIN_TIMINGS = 30, 3
TIMING_SECONDS = 1.0
"""What the timings of one model may take together, unless the fewest take longer."""
BATCH_ROWS = 1000
"""For the throughput."""
ROWS_IN_TURN = 40
"""Single rows that a model answers in each turn."""
SERVING_THREADS = {"OMP_NUM_THREADS": "1"}
"""A serving process answers requests side by side, each in one thread."""


@dataclass(frozen=True)
class Measured:
    """What was measured of a model, in a process that runs it as a serving process does."""

    model_bytes: int
    """Of its files."""
    memory_bytes: int
    """By how much the process grew when it was loaded and had answered once; of small ones about nothing is seen."""
    row_p50_us: float
    """Median time to score one row, in microseconds."""
    row_p99_us: float
    rows_per_second: float
    """At BATCH_ROWS rows at once."""


def measure(folders: Sequence[str], rows: str) -> list[Measured | str]:
    """Measure bundles in this process; what can't be loaded, or does not answer as it should, is said in words.

    Args:
        folders: a bundle each, the one to compare with first.
        rows: a .npy file of a float32 matrix, shape (rows, features).
    """
    import infra.lean_xgboost  # noqa: F401  before the bundle imports it

    x_BF: NDArray[np.float32] = np.load(rows)
    x_BF = np.ascontiguousarray(np.resize(x_BF, (BATCH_ROWS, x_BF.shape[1])))
    for folder in folders[:2]:  # so that what the libraries take is not counted as the first models'
        _loaded(Path(folder), x_BF)
    answers: list[Measured | str] = []
    loaded: dict[int, tuple[Predictor, int]] = {}
    for i, folder in enumerate(folders):
        found = _loaded(Path(folder), x_BF)
        answers.append(found if isinstance(found, str) else "")
        if not isinstance(found, str):
            loaded[i] = found
    timings = timed([predictor for predictor, _ in loaded.values()], x_BF)
    for (i, (predictor, memory_bytes)), (row_seconds, batch_seconds) in zip(loaded.items(), timings, strict=True):
        p50, p99 = np.quantile(row_seconds, [0.5, 0.99])
        answers[i] = Measured(
            model_bytes=predictor.num_bytes,
            memory_bytes=memory_bytes,
            row_p50_us=float(p50 * 1e6),
            row_p99_us=float(p99 * 1e6),
            rows_per_second=float(len(x_BF) / np.median(batch_seconds)),
        )
    return answers


def _loaded(folder: Path, x_BF: NDArray[np.float32]) -> tuple[Predictor, int] | str:
    """Return a model as a serving process has it, and its memory; or why it can't be served."""
    from infra.bundle.model import Bundle

    gc.collect()
    give_back()
    before = psutil.Process().memory_info().rss
    try:
        bundle = Bundle.load(folder)
        bundle.predictor.use_one_thread()
        bundle.check_golden()
        bundle.predictor.scores(x_BF)
    except Exception as error:  # whatever a damaged file makes its library raise
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    give_back()
    return bundle.predictor, max(0, psutil.Process().memory_info().rss - before)


def timed(
    predictors: Sequence[Predictor], x_BF: NDArray[np.float32], clock: Callable[[], float] = time.perf_counter
) -> list[tuple[list[float], list[float]]]:
    """Return, by model, the seconds of single rows and the seconds of the whole matrix.

    The models take turns, so that what else the machine does slows all of them alike. There are MAX_TIMINGS turns
    after one that is not counted, or fewer: none begins that would, at the pace so far, end after TIMING_SECONDS per
    model. MIN_TIMINGS there are in any case.
    """

    def once(predictor: Predictor, rows: NDArray[np.float32]) -> float:
        start = clock()
        predictor.scores(rows)
        return clock() - start

    singles = [x_BF[i : i + 1] for i in range(min(ROWS_IN_TURN, len(x_BF)))]
    found: list[tuple[list[float], list[float]]] = [([], []) for _ in predictors]
    start = clock()
    for turn in range(MAX_TIMINGS + 1):
        for predictor, (rows, batches) in zip(predictors, found, strict=True):
            taken = [once(predictor, row) for row in singles]
            batch = once(predictor, x_BF)
            if turn:
                rows += taken
                batches.append(batch)
        pace = (clock() - start) / (turn + 1)
        if turn >= MIN_TIMINGS and pace * (turn + 2) > TIMING_SECONDS * len(predictors):
            break
    return found


def median_seconds(
    predictors: Sequence[Predictor], x_BF: NDArray[np.float32], clock: Callable[[], float] = time.perf_counter
) -> list[tuple[float, float]]:
    """Return, by model, the median seconds of one row, and of the whole matrix; see `timed`."""
    return [(float(np.median(rows)), float(np.median(batches))) for rows, batches in timed(predictors, x_BF, clock)]
