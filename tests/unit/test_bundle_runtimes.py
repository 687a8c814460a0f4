"""Bundles of compact trees with two runtimes: on disk, in the store, and what they answer."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from _boosters import NUM_CODES, booster, rows
from _networks import graph, weights
from polars.testing import assert_frame_equal

from infra.bundle.blend import Blend
from infra.bundle.errors import InputError
from infra.bundle.model import FILES, Bundle
from infra.bundle.network import Network
from infra.bundle.predictor import Predictor
from infra.bundle.schema import Column, Schema
from infra.bundle.trees import Trees
from infra.bundle.vocabulary import Vocabulary
from infra.serving.target import Target, load_target
from infra.storage import Ref, Store
from tasks._candidate import BundleRef, load_bundle, store_bundle, with_file
from tasks._choose import pilot_of
from tasks._onnx_trees import forest_of, graphs_of, without_statistics
from tasks._xgboost import load_booster
from tasks.register import requirements

LABELS: dict[str, tuple[str, ...]] = {"binary": ("no", "yes"), "multiclass": ("a", "b", "c"), "regression": ()}
COLUMNS = (
    Column("town", "categorical"),
    Column("a", "numeric"),
    Column("b", "numeric"),
    Column("sort", "categorical"),
    Column("y", "numeric"),
)
VOCABULARY = Vocabulary({"town": tuple(f"t{i}" for i in range(1, NUM_CODES)), "sort": ("s1", "s2")})
X_BF = rows(60)
ROWS = pl.DataFrame(
    {
        "town": [None if np.isnan(code) else f"t{int(code)}" for code in X_BF[:, 0]],
        "a": [None if np.isnan(number) else float(number) for number in X_BF[:, 1]],
        "b": [None if np.isnan(number) else float(number) for number in X_BF[:, 2]],
        "sort": [None if np.isnan(code) else f"s{int(code)}" for code in X_BF[:, 3]],
    }
)
MODEL_FILES = {"model.ubj.xz", "model.onnx.xz", "model.link.onnx"}


def compact(task: str = "binary", crossover: int = 5) -> Trees:
    """Make trees with both runtimes."""
    graphs = graphs_of(forest_of(booster(task)))
    return Trees(without_statistics(booster(task)), graphs, crossover, is_compact=True)


def bundle_of(predictor: Predictor, task: Any = "binary") -> Bundle:
    """Put a model into a bundle, with golden predictions."""
    schema = Schema(COLUMNS, target="y", task=task, labels=LABELS[task])
    return Bundle(schema, VOCABULARY, predictor, 0.4, {"model": "loans"}).with_golden(ROWS.head(10))


class Recording:
    """A session that notes how many rows it is asked about."""

    def __init__(self, session: Any) -> None:
        self.session, self.asked = session, list[int]()

    def run(self, names: list[str], given: dict[str, Any]) -> Any:
        """Note the rows, and run."""
        self.asked.append(len(given["x"]))
        return self.session.run(names, given)


# Answers


def test_few_rows_go_to_one_runtime_and_many_to_the_other() -> None:
    """Up to the crossover ONNX Runtime is asked about rows, beyond it only to make scores of XGBoost's margins."""
    trees = compact(crossover=5)
    trees.scores(X_BF)
    whole, link = Recording(trees._running()), Recording(trees._link)
    trees._session, trees._link = whole, link
    for size in (1, 5, 6, 60):
        trees.scores(X_BF[:size])

    assert ([1, 5], [6, 60]) == (whole.asked, link.asked)


@pytest.mark.parametrize("task", list(LABELS))
def test_compact_trees_answer_as_the_trained_ones(tmp_path: Path, task: str) -> None:
    """A bundle of compact trees that is read again answers raw rows, alone or together, as the trained ones do."""
    trained, shipped = bundle_of(Trees(booster(task)), task), bundle_of(compact(task), task)
    shipped.save(tmp_path)
    loaded = Bundle.load(tmp_path)
    loaded.check_golden()
    alone = pl.concat([loaded.predict(ROWS[i]) for i in range(ROWS.height)])

    assert_frame_equal(trained.predict(ROWS), loaded.predict(ROWS), abs_tol=2e-7, rel_tol=0)
    assert_frame_equal(loaded.predict(ROWS), alone, check_exact=True)


def test_threads_may_ask_at_once() -> None:
    """Trees that several threads ask, the first time too, give each the same answers."""
    trees = compact()
    trees.use_one_thread()
    expected = compact().scores(X_BF)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: trees.scores(X_BF[i % 50 : i % 50 + 1 + i % 9]), range(400)))

    for i, scores in enumerate(found):
        np.testing.assert_array_equal(expected[i % 50 : i % 50 + 1 + i % 9], scores)


def test_a_wrong_graph_is_found_by_the_golden_predictions() -> None:
    """Golden rows are scored together and one alone, so that a runtime for few rows alone is checked too."""
    whole = bundle_of(compact(crossover=1))
    wrong = replace(compact(crossover=1), graphs=graphs_of(forest_of(booster(rounds=5))))
    whole.check_golden()
    with pytest.raises(ValueError, match="golden predictions to within 1e-06, but got a difference="):
        replace(whole, predictor=wrong).check_golden()


# On disk


def test_compact_trees_are_described_in_format_3(tmp_path: Path) -> None:
    """The description names the files; the crossover lies apart, as it is measured."""
    names = bundle_of(compact()).save(tmp_path)

    assert {*FILES, *MODEL_FILES, "runtime.json"} == set(names) == {path.name for path in tmp_path.iterdir()}
    assert {"crossover": {"model": 5}} == json.loads((tmp_path / "runtime.json").read_text())
    assert {
        "format": 3,
        "family": "xgboost",
        "files": ["model.ubj.xz", "model.onnx.xz", "model.link.onnx", "runtime.json"],
        "facts": {"model": "loans"},
        "half_width": None,
        "has_spread": False,
        "threshold": 0.4,
    } == json.loads((tmp_path / "bundle.json").read_text())


def test_a_blend_has_its_compact_trees(tmp_path: Path) -> None:
    """A blend keeps the crossover of each part by the name of its files, and is read as it was."""
    network = Network(graph(weights(4)))
    parts: list[tuple[float, Predictor]] = [(0.5, compact(crossover=3)), (0.25, network), (0.25, compact(crossover=9))]
    bundle = bundle_of(Blend(tuple(parts)))
    names = bundle.save(tmp_path)
    loaded = Bundle.load(tmp_path)

    stems = {f"part{i}.{end}" for i in (0, 2) for end in ("ubj.xz", "onnx.xz", "link.onnx")}
    assert {*FILES, *stems, "part1.onnx", "runtime.json"} == set(names)
    assert {"crossover": {"part0": 3, "part2": 9}} == json.loads((tmp_path / "runtime.json").read_text())
    assert 3 == json.loads((tmp_path / "bundle.json").read_text())["format"]
    assert_frame_equal(bundle.predict(ROWS), loaded.predict(ROWS), check_exact=True)
    assert loaded.predictor.num_bytes == sum((tmp_path / name).stat().st_size for name in {*stems, "part1.onnx"})


def test_trees_without_graphs_may_be_compact(tmp_path: Path) -> None:
    """Trees that have XGBoost alone are one compressed file, and need no measured number."""
    bundle = bundle_of(Trees(without_statistics(booster()), is_compact=True))

    assert {*FILES, "model.ubj.xz"} == set(bundle.save(tmp_path))
    assert_frame_equal(bundle.predict(ROWS), Bundle.load(tmp_path).predict(ROWS), check_exact=True)


def test_a_damaged_compact_file_is_named(tmp_path: Path) -> None:
    """A compressed file that was cut short ends in one message."""
    bundle_of(compact()).save(tmp_path)
    path = tmp_path / "model.ubj.xz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"is a whole xz file, but got .+ in model\.ubj\.xz\. Register the model aga"):
        Bundle.load(tmp_path)


# In the store


def test_a_stored_compact_bundle_is_the_bundle(tmp_path: Path) -> None:
    """A bundle that is read from the store and put there again is the same object; its trees can be read alone."""
    store = Store(str(tmp_path))
    ref = store_bundle(store, bundle_of(compact()))
    readers = (load_booster(store, ref.booster), pilot_of(store, ref.model).booster)  # type: ignore[attr-defined]

    assert ref == store_bundle(store, load_bundle(store, ref))
    assert (True, "model.ubj.xz") == (ref.has_trees, Path(ref.model.name).name)
    for found in readers:
        np.testing.assert_array_equal(booster().inplace_predict(X_BF), found.inplace_predict(X_BF))


def test_what_was_measured_makes_no_other_model(tmp_path: Path) -> None:
    """Two crossovers of the same trees have one digest and the same files, but each its own measured one."""
    store = Store(str(tmp_path))
    one, two = (store_bundle(store, bundle_of(compact(crossover=number))) for number in (5, 500))
    other = set(one.files) ^ set(two.files)

    assert one.digest == two.digest
    assert ["runtime.json"] * 2 == [Path(file.name).name for file in other]
    assert [{"model": 5}, {"model": 500}] == [
        json.loads(store.get(next(file for file in ref.files if file in other)))["crossover"] for ref in (one, two)
    ]
    assert (5, 500) == tuple(load_bundle(store, ref).predictor.crossover for ref in (one, two))  # type: ignore[attr-defined]


def test_a_measured_file_is_added_and_replaced(tmp_path: Path) -> None:
    """A certificate joins a bundle without making it another model, and a later one takes its place."""
    store = Store(str(tmp_path))
    ref = store_bundle(store, bundle_of(compact()))
    first, second = (with_file(store, ref, "certificate.json", payload) for payload in (b"{}", b'{"a": 1}'))
    replaced = with_file(store, first, "certificate.json", b'{"a": 1}')

    assert ref.digest == first.digest == second.digest
    assert (second, b"{}") == (replaced, store.get(next(file for file in first.files if "cert" in file.name)))
    assert sorted(Path(file.name).name for file in first.files) == [Path(file.name).name for file in first.files]
    assert {*FILES, *MODEL_FILES, "runtime.json", "certificate.json"} == {Path(f.name).name for f in second.files}
    assert_frame_equal(load_bundle(store, ref).predict(ROWS), load_bundle(store, second).predict(ROWS))


def test_only_measured_files_are_added(tmp_path: Path) -> None:
    """A file that would make another model is refused."""
    message = r"is one of runtime\.json, certificate\.json, but got name=model\.ubj\. Store a bundle\."
    with pytest.raises(ValueError, match=message):
        with_file(Store(str(tmp_path)), BundleRef(()), "model.ubj", b"")


def test_digests_of_earlier_bundles_stay() -> None:
    """The digest of a bundle without measured files is what it was before there were any."""
    files = tuple(Ref(f"bundles/a/{name}", name[::-1], 1) for name in ("bundle.json", "model.ubj"))

    assert "e1bb00a0f0048cccd6c2ef2eb713af36" == BundleRef(files).digest


def test_a_server_loads_both_runtimes(tmp_path: Path) -> None:
    """A released bundle with a certificate is read through an empty folder, checked, and answers in one thread."""
    store, folder = Store(str(tmp_path / "store")), tmp_path / "served"
    folder.mkdir()
    ref = with_file(store, store_bundle(store, bundle_of(compact())), "certificate.json", b"{}")
    loaded = load_target(store, Target("loans", "1", "run", ref.files, "2026-12-01T00:00:00+00:00"), folder)

    assert_frame_equal(bundle_of(compact()).predict(ROWS), loaded.predict(ROWS), check_exact=True)
    assert "1" == json.loads(loaded.booster.save_config())["learner"]["generic_param"]["nthread"]


@pytest.mark.parametrize(
    ("trees", "expected"),
    [
        (compact(), {"onnxruntime", "xgboost"}),
        (Trees(without_statistics(booster()), is_compact=True), {"xgboost"}),
        (Trees(booster()), {"xgboost"}),
    ],
)
def test_a_bundle_requires_both_runtimes_where_it_has_both(trees: Trees, expected: set[str]) -> None:
    """An MLflow model asks for ONNX Runtime where there is a graph."""
    names = {line.partition("==")[0] for line in requirements(bundle_of(trees))}

    assert expected == names - {"numpy", "pandas", "polars", "pyarrow"}
