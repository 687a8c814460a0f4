"""What a collection of garbage tells."""

from __future__ import annotations

from flows.gc import Collected, KindCount, counted
from flows.views import collected_text
from infra.storage import Stored
from tasks._maintain import Garbage, MaintainConfig


def garbage(name: str, kind: str, num_bytes: int) -> Garbage:
    """Return something of the storage that goes."""
    return Garbage("storage", kind, name, num_bytes, "")


def test_every_object_is_counted_once() -> None:
    """An object goes, waits or stays; other programs' files are no objects of ours, and a torn file is of no kind."""
    stored = [
        Stored("shards/a.json", 10, 0.0),
        Stored("shards/a.arrow", 100, 0.0),
        Stored("shards/b.arrow", 200, 0.0),
        Stored("stages/train/c.json", 5, 0.0),
        Stored("ledger/loans/1.json", 1, 0.0),
        Stored("mlflow/1/model", 1000, 0.0),
        Stored("mlflow.db", 1000, 0.0),
        Stored("maintenance/unreferenced.json", 7, 0.0),
    ]
    gone = [garbage("shards/a.json", "shards", 10), garbage("shards/.b.arrow.0.tmp", "temporary file", 50)]
    waiting = [garbage("shards/a.arrow", "shards", 100)]

    assert (
        KindCount("ledger", stays=1, stays_bytes=1),
        KindCount("shards", goes=1, goes_bytes=10, waits=1, waits_bytes=100, stays=1, stays_bytes=200),
        KindCount("stages/train", stays=1, stays_bytes=5),
        KindCount("temporary file", goes=1, goes_bytes=50),
    ) == counted(stored, gone, waiting)


def test_the_table_has_a_line_for_each_kind() -> None:
    """People see numbers and sizes of what goes, waits and stays, and what waiting means."""
    kinds = (
        KindCount("ledger", stays=2, stays_bytes=1 << 20),
        KindCount("shards", goes=1, goes_bytes=3 << 20, waits=1, waits_bytes=2 << 20),
    )
    collected = Collected("loans", True, kinds, ("shards/a.json",), ("A note.",))

    assert (
        "loans: 3.0 MiB would be removed.\n"
        "                                      goes               waits               stays\n"
        "  ledger                    0      0.0 MiB      0      0.0 MiB      2      1.0 MiB\n"
        "  shards                    1      3.0 MiB      1      2.0 MiB      0      0.0 MiB\n"
        "  What waits is needed by nothing, and goes at a later call, a grace period after the first.\n"
        "  A note."
    ) == collected_text(collected.to_json())


def test_a_limit_may_be_written_as_people_do() -> None:
    """The limit of a configuration is a number of bytes or a text with a unit."""
    limits = [MaintainConfig.model_validate({"max_bytes": text}).max_bytes for text in (5, "10GB", "1.5 GiB")]

    assert [5, 10_000_000_000, 1_610_612_736] == limits
