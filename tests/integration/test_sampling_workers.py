"""Sampling on real workers: every design finds its thresholds over all shards, and draws what it promises."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import polars as pl
import pytest

from infra.bundle.schema import Column, Schema
from infra.clusters import ClusterConfig, open_cluster
from infra.storage import Store
from tasks._encode import GROUP, ROW, TARGET, TIME, Encoded, Shard, row_hash
from tasks._pilot import Rows, compare
from tasks._sample import Method, SampleRule, SamplingConfig
from tasks._split import TRAIN, SplitRule
from tasks.sample import enough_rows, rule_of
from tasks.stage import Run

N = 30_000
SIZE = 2000
DAY = 86_400.0
SCHEMA = Schema(
    (Column("x", "numeric"), Column("k", "categorical"), Column("t", "datetime"), Column("y", "numeric")),
    target="y",
    task="binary",
    labels=("no", "yes"),
    time="t",
    group="g",
)
SETTINGS: dict[Method, dict[str, Any]] = {
    "uniform": {},
    "stratified": {"by": "x"},
    "group": {},
    "recent": {"half_life_days": 60},
    "hard": {},
}


def frame() -> pl.DataFrame:
    """Make rows whose target can be learnt in part."""
    rng = np.random.default_rng(0)
    x, code = rng.normal(size=N), rng.integers(-1, 4, N)
    return pl.DataFrame(
        {
            "x": pl.Series(x, dtype=pl.Float32),
            "k": pl.Series(code, dtype=pl.Int32),
            TARGET: pl.Series(2 * x + code + rng.normal(size=N) > 2, dtype=pl.Float32),
            TIME: rng.integers(0, 365, N) * DAY,
            GROUP: row_hash(pl.DataFrame({"g": rng.integers(0, 3000, N)}), ("g",)),
            ROW: row_hash(pl.DataFrame({"i": np.arange(N)}), ("i",)),
        }
    )


@pytest.fixture(scope="module")
def placed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Run, Rows, pl.DataFrame]]:
    """Give a run on two workers, rows in four shards, and those of them that train."""
    folder = tmp_path_factory.mktemp("sampling")
    store = Store(str(folder / "root"))
    whole = frame()
    shards = []
    for i in range(4):
        part = whole.gather_every(4, i)
        part.write_ipc(folder / f"{i}.arrow")
        shards.append(Shard(store.put_file(f"shards/{i}", folder / f"{i}.arrow"), part.height, 0, {}, {}))
    vocabulary = store.put("vocabulary.json", b'{"k": ["a", "b", "c"]}')
    rows = Rows(Encoded(SCHEMA, vocabulary, tuple(shards), 0), SplitRule("row", 0.1, 0.15))
    with open_cluster(ClusterConfig(workers=2, threads_per_worker=1), folder / "scratch") as address:
        run = SimpleNamespace(store=store, cluster=address, advance=lambda stage: lambda done, total: None)
        yield cast(Run, run), rows, whole.filter(pl.Series(rows.split.sides(whole) == TRAIN))


@pytest.mark.parametrize("method", SETTINGS)
def test_every_design_draws_what_it_promises(placed: tuple[Run, Rows, pl.DataFrame], method: Method) -> None:
    """A sample has its size, whatever the design, and the comparison with a second draw finds no flaw in it."""
    run, rows, train = placed
    config = SamplingConfig(method=method, rows=SIZE, **SETTINGS[method])
    rule = rule_of(run, replace(rows, unit=SampleRule(method).unit), config, SIZE, train.height)
    num_rows, fairness = compare(run.store, rows, rule)
    slack = {"group": 30, "hard": 4 * np.sqrt(SIZE)}.get(method, 0)

    assert SIZE - slack <= num_rows <= SIZE + (slack if method == "hard" else 0)
    assert () == fairness.problems
    assert (method in ("hard", "stratified")) == rule.has_weights


def test_a_learning_curve_is_made_on_a_worker(placed: tuple[Run, Rows, pl.DataFrame]) -> None:
    """With enough rows there is a curve, with fewer all rows are used without one."""
    run, rows, train = placed
    auto = SamplingConfig(rows="auto")
    curve, none = enough_rows(run, rows, auto, train.height), enough_rows(run, rows, auto, 19_999)

    assert (5, True, train.height) == (len(curve.losses), 0 < curve.chosen <= train.height, curve.grid[-1])
    assert (None, 19_999) == (none.fit, none.chosen)
