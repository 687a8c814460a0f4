"""The feature store on real workers: only what is new is read, whatever the files are called and however large."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from infra.bundle.schema import Schema
from infra.clusters import ClusterConfig, open_cluster
from infra.errors import InputError
from infra.storage import Store
from tasks import _fingerprints, _parts
from tasks._encode import Encoded, left_out, load_shard
from tasks._fingerprints import known_snapshot
from tasks._jobs import read_vocabulary
from tasks._kinds import infer_schema
from tasks._profile import Profile
from tasks._snapshot import DataConfig
from tasks.encode import encode_units
from tasks.profile import Trained, check_alike, check_new_files, profile_units

MODEL = "loans"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Give a cluster of two worker processes."""
    with open_cluster(ClusterConfig(workers=2, threads_per_worker=1), tmp_path_factory.mktemp("scratch")) as address:
        yield address


@pytest.fixture(autouse=True)
def fresh_files_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take files that were written a moment ago for settled ones."""
    monkeypatch.setattr(_fingerprints, "RACY_NS", -(10**12))


@dataclass
class FeatureStore:
    """A model's data, and how much each pass over it has read."""

    base: Path
    cluster: str
    config: DataConfig
    read: list[tuple[int, int, int]] = field(default_factory=list)
    """Files hashed, profiled and encoded, by pass."""

    @property
    def store(self) -> Store:
        """Return where it is kept."""
        return Store(str(self.base / "root"))

    def update(self) -> tuple[Profile, Schema, Encoded]:
        """Take the files to shards."""
        snapshot = known_snapshot(self.store, MODEL, self.config, self.base)
        seen, num_profiled = profile_units(self.store, self.cluster, snapshot, self.config.time)
        check_alike(seen, snapshot, self.config)
        schema = infer_schema(seen, self.config, None, None)
        encoded, _ = encode_units(self.store, MODEL, self.cluster, snapshot, schema, seen, self.config)
        self.read.append((snapshot.num_read, num_profiled, encoded.num_new))
        return seen, schema, encoded

    def rows(self, encoded: Encoded) -> pl.DataFrame:
        """Return all encoded rows."""
        return pl.concat([load_shard(self.store, shard) for shard in encoded.shards])


@pytest.fixture
def features(tmp_path: Path, cluster: str) -> FeatureStore:
    """Give a feature store of four files of different rows."""
    (tmp_path / "data").mkdir()
    for index in range(4):
        write(tmp_path / f"data/{index}.parquet", index)
    return FeatureStore(tmp_path, cluster, DataConfig(source="data", target="y"))


def write(path: Path, seed: int, num_rows: int = 200) -> None:
    """Write made-up rows into a Parquet or CSV file."""
    rng = np.random.default_rng(seed)
    frame = pl.DataFrame(
        {
            "x": rng.normal(size=num_rows),
            "city": rng.choice(["Rome", "Oslo", "Bern"], num_rows),
            "y": rng.choice(["yes", "no"], num_rows),
        }
    )
    frame.write_parquet(path) if path.suffix == ".parquet" else frame.write_csv(path)


def test_only_what_is_new_is_read(features: FeatureStore) -> None:
    """Of N files of which k are new k are read; a changed one is read again, a renamed or deleted one is not."""
    features.update()
    features.update()
    write(features.base / "data/4.parquet", 4)
    features.update()
    write(features.base / "data/0.parquet", 10)
    features.update()
    (features.base / "data/1.parquet").rename(features.base / "data/one.parquet")
    before = features.rows(features.update()[2])
    (features.base / "data/2.parquet").unlink()
    seen, _, encoded = features.update()

    # A renamed file is hashed, to find that it is known.
    assert [(4, 4, 4), (0, 0, 0), (1, 1, 1), (1, 1, 1), (1, 0, 0), (0, 0, 0)] == features.read
    assert (1000, 800, 800) == (before.height, seen.num_rows, encoded.num_rows)


def test_a_text_that_grows_is_read_at_its_end(features: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that are added to a large CSV file cost the part that they are in; the other shards stay."""
    monkeypatch.setattr(_parts, "TEXT_BYTES", 2_000)
    data = features.base / "text"
    data.mkdir()
    write(data / "a.csv", 0, 1_000)
    features.config = features.config.model_copy(update={"source": "text"})
    _, _, first = features.update()
    with open(data / "a.csv", "a") as file:
        file.write("0.5,Lima,yes\n" * 5)
    seen, _, second = features.update()

    assert len(first.shards) > 10
    assert first.shards[:-1] == second.shards[: len(first.shards) - 1]
    assert (1005, 1005) == (seen.num_rows, second.num_rows)


def test_files_and_units_make_the_same_rows(features: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is divided has the profile and the encoded rows of one that is not."""
    seen, schema, encoded = features.update()
    expected = features.rows(encoded)
    monkeypatch.setattr(_parts, "TYPED_BYTES", 2_000)
    divided = FeatureStore(features.base / "again", features.cluster, features.config)
    divided.base.mkdir()
    (divided.base / "data").symlink_to(features.base / "data")
    other, other_schema, units = divided.update()

    assert len(units.shards) > 3 * len(encoded.shards)
    assert expected.equals(divided.rows(units))
    assert schema == other_schema
    assert {n: (c.values, c.num_distinct, c.minimum, c.maximum) for n, c in seen.columns.items()} == {
        n: (c.values, c.num_distinct, c.minimum, c.maximum) for n, c in other.columns.items()
    }


def test_a_column_of_two_types_names_both_files(features: FeatureStore) -> None:
    """A column that is a number in one file and a text in another is refused with both, unless it is said to be one."""
    pl.DataFrame({"x": ["low", "high"] * 50, "city": ["Rome"] * 100, "y": ["yes", "no"] * 50}).write_parquet(
        features.base / "data/z.parquet"
    )
    message = (
        r"A column holds values of one type in every file, but got column='x' with numbers alone in .*\.parquet and "
        r'none in .*z\.parquet\. Mend one of the files, or say what they are: data\.kinds\."x" = "categorical"\.'
    )
    with pytest.raises(InputError, match=message):
        features.update()
    features.config = features.config.model_copy(update={"kinds": {"x": "categorical"}})

    assert 900 == features.update()[0].num_rows


def test_more_categories_than_codes_are_told(features: FeatureStore) -> None:
    """A column with more values than the cap says so, with the share of rows that have a code."""
    texts = [f"shop {i % 40}" for i in range(400)] + ["shop 0"] * 400
    pl.DataFrame({"shop": texts, "y": ["yes", "no"] * 400}).write_parquet(features.base / "shops.parquet")
    features.config = DataConfig(source="shops.parquet", target="y", max_categories=10)
    seen, schema, encoded = features.update()
    vocabulary = read_vocabulary(features.store, encoded.vocabulary)

    assert [
        "'shop' has 40 values, more than the 10 codes of data.max_categories. "
        "62.5% of its rows have a value with a code; the others count as unknown."
    ] == left_out(vocabulary, schema, seen, 10)
    assert 300 == (features.rows(encoded).get_column("shop") == 0).sum()


def test_many_small_files_are_merged_as_a_tree(features: FeatureStore) -> None:
    """With more files than a node holds, a further file costs its own profile and the nodes above it."""
    data = features.base / "many"
    data.mkdir()
    for index in range(150):
        write(data / f"{index:03d}.csv", index, 20)
    features.config = features.config.model_copy(update={"source": "many"})
    seen, _, _ = features.update()
    stored = set(features.store.list("profiles/"))
    write(data / "150.csv", 150, 20)
    more, _, _ = features.update()

    assert [(150, 150, 150), (1, 1, 1)] == features.read
    assert (3_000, 3_020) == (seen.num_rows, more.num_rows)
    assert len(stored) > 153
    assert len(set(features.store.list("profiles/")) - stored) <= 8


def test_a_column_that_the_champion_needs_may_be_in_any_part(
    features: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new file has a column if some line of it does, in whatever part; one that has it nowhere is named."""
    monkeypatch.setattr(_parts, "TEXT_BYTES", 400)
    _, schema, _ = features.update()
    lines = ['{"x": 1.5, "y": "yes"}'] * 60 + ['{"x": 2.5, "y": "no", "city": "Rome"}'] * 60
    (features.base / "data/late.jsonl").write_text("\n".join(lines) + "\n")
    snapshot = known_snapshot(features.store, MODEL, features.config, features.base)
    profile_units(features.store, features.cluster, snapshot, None)
    check_new_files(features.store, snapshot, None, Trained(schema, ()))

    (features.base / "data/late.jsonl").write_text("\n".join(lines[:60]) + "\n")
    snapshot = known_snapshot(features.store, MODEL, features.config, features.base)
    profile_units(features.store, features.cluster, snapshot, None)
    with pytest.raises(InputError, match=r"keeps the columns of the champion, but got none called 'city' in .*late"):
        check_new_files(features.store, snapshot, None, Trained(schema, ()))
