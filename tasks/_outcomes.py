"""What trainings really took, kept beside what was predicted for them, and what the next prediction learns from it."""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from pydantic import TypeAdapter, ValidationError

from infra.storage import MissingError, Store, digest_bytes

NUM_READ = 50
"""Outcomes of a model that are read, the newest."""
NUM_USED = 20
"""Those of one kind of plan that correct the next one."""
MEMORY_QUANTILE = 0.9
"""Too much memory costs a little, too little the run."""
MEMORY_LIMITS, SECONDS_LIMITS = (0.7, 1.5), (0.05, 20.0)
MIN_OUTCOMES = 3
"""Runs of a kind before less memory is predicted for it, and before its time is judged by them alone."""
NAME = re.compile(r"plans/.+/\d{8}T\d{6}Z-[0-9a-f]+\.json")


@dataclass(frozen=True)
class Outcome:
    """A training that has ended, and what was predicted for it."""

    kind: str
    """Of its plan: outcomes correct plans of the same kind only."""
    predicted_bytes: int
    peak_bytes: int
    """The largest memory (VmHWM) of its fullest member."""
    predicted_seconds: float
    """For the rounds that were run."""
    seconds: float
    rounds: int
    """Run by all fits together."""
    rows: int
    features: int
    when: str
    """The end, in UTC, as in 2026-12-01T03:00:00+00:00."""
    memory_factor: float = 1.0
    """By which the prediction had been corrected already."""
    seconds_factor: float = 1.0

    @property
    def device(self) -> str:
        """Return what it ran on."""
        return self.kind.partition("/")[0]

    @property
    def memory_ratio(self) -> float:
        """Return measured over predicted, as it was before any correction."""
        return self.peak_bytes / max(1.0, self.predicted_bytes / self.memory_factor)

    @property
    def seconds_ratio(self) -> float:
        """Return measured over predicted, as it was before any correction."""
        return self.seconds / max(1e-3, self.predicted_seconds / self.seconds_factor)


@dataclass(frozen=True)
class Factors:
    """What predictions of one kind are multiplied by."""

    memory: float = 1.0
    seconds: float = 1.0
    num_outcomes: int = 0


OUTCOME: TypeAdapter[Outcome] = TypeAdapter(Outcome)


def factors_of(kind: str, outcomes: Sequence[Outcome]) -> Factors:
    """Return the corrections that the last outcomes of a kind ask for.

    How fast the machines are is the same for all kinds of a device: where a kind has few outcomes the others' time
    counts as well. Else the one kind that was ever tried would look slower than all that never were.

    >>> run = Outcome("cpu/1/in_memory", 100, 120, 10.0, 5.0, 50, 1000, 5, "2026-12-01T03:00:00+00:00")
    >>> factors_of("cpu/1/in_memory", [run])
    Factors(memory=1.2, seconds=0.5, num_outcomes=1)
    >>> factors_of("cpu/2/in_memory", [run])
    Factors(memory=1.0, seconds=0.5, num_outcomes=0)
    >>> factors_of("cuda/1/in_memory", [run])
    Factors(memory=1.0, seconds=1.0, num_outcomes=0)
    """
    ordered = sorted(outcomes, key=lambda one: one.when)
    last = [one for one in ordered if one.kind == kind][-NUM_USED:]
    memory = quantile([one.memory_ratio for one in last], MEMORY_QUANTILE) if last else 1.0
    if len(last) < MIN_OUTCOMES:
        memory = max(1.0, memory)
    timed = last
    if len(last) < MIN_OUTCOMES:
        timed = [one for one in ordered if one.device == kind.partition("/")[0]][-NUM_USED:]
    seconds = statistics.median(one.seconds_ratio for one in timed) if timed else 1.0
    return Factors(_within(memory, MEMORY_LIMITS), _within(seconds, SECONDS_LIMITS), len(last))


def error_text(outcomes: Sequence[Outcome]) -> str:
    """Return how good the predictions have been, in one line.

    >>> error_text([Outcome("cpu", 100, 112, 10.0, 14.0, 50, 1000, 5, "2026-12-01T03:00:00+00:00")])
    'so far: memory within 12%, time within 40% (1 run)'
    >>> error_text([])
    'so far: no run to compare with'
    """
    last = sorted(outcomes, key=lambda one: one.when)[-NUM_USED:]
    if not last:
        return "so far: no run to compare with"
    memory = quantile([abs(one.peak_bytes / max(1, one.predicted_bytes) - 1) for one in last], MEMORY_QUANTILE)
    seconds = quantile([abs(one.seconds / max(1e-3, one.predicted_seconds) - 1) for one in last], MEMORY_QUANTILE)
    runs = f"{len(last)} run{'s' if len(last) > 1 else ''}"
    some = "" if len(last) == 1 else ", 9 of 10" if len(last) >= 10 else ""
    return f"so far: memory within {memory:.0%}, time within {seconds:.0%} ({runs}{some})"


def quantile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least this share of the values do not exceed.

    >>> quantile([3, 1, 2], 0.9), quantile(list(range(1, 21)), 0.9)
    (3, 18)
    """
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -int(-share * len(ordered) // 1) - 1))]


def keep_outcome(store: Store, model: str, outcome: Outcome) -> None:
    """Write an outcome; the same one twice is one. Those that are too old to be read go."""
    payload = OUTCOME.dump_json(outcome)
    store.put(outcome_name(model, outcome.when, payload), payload)
    for name in [name for name in store.list(f"plans/{model}/") if NAME.fullmatch(name)][:-NUM_READ]:
        store.delete(name)


def outcome_name(model: str, when: str, payload: bytes) -> str:
    """Return the name of an outcome's object; names sort by time.

    >>> outcome_name("churn", "2026-12-01T03:00:00+00:00", b"{}")
    'plans/churn/20261201T030000Z-6e46dd10.json'
    """
    return f"plans/{model}/{datetime.fromisoformat(when):%Y%m%dT%H%M%SZ}-{digest_bytes(payload)[:8]}.json"


def load_outcomes(store: Store, model: str) -> tuple[Outcome, ...]:
    """Return the newest outcomes of a model, the oldest of them first; damaged ones do not count."""
    names = [name for name in store.list(f"plans/{model}/") if NAME.fullmatch(name)]
    found = []
    for name in names[-NUM_READ:]:
        try:
            found.append(OUTCOME.validate_json(store.get(name)))
        except (MissingError, ValidationError):  # removed meanwhile, or cut short by hand: one run less to learn from
            continue
    return tuple(found)


def _within(value: float, limits: tuple[float, float]) -> float:
    return min(max(value, limits[0]), limits[1])
