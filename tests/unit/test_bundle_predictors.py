"""Models of every family: what they answer, and how they lie on disk."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import xgboost as xgb
from _networks import graph, linear, weights
from numpy.typing import NDArray
from polars.testing import assert_frame_equal

from infra.bundle import network as network_module
from infra.bundle.blend import Blend
from infra.bundle.encoder import encode_frame
from infra.bundle.errors import InputError
from infra.bundle.model import FILES, FORMAT, Bundle
from infra.bundle.network import Network
from infra.bundle.predictor import Predictor
from infra.bundle.schema import Column, Schema, Task
from infra.bundle.session import usable_threads
from infra.bundle.trees import Trees
from infra.bundle.vocabulary import Vocabulary
from infra.storage import Store
from tasks._candidate import load_bundle, store_bundle
from tasks.register import requirements

ROOT = Path(__file__).parents[2]
COLUMNS = (Column("n", "numeric"), Column("city", "categorical"), Column("ok", "boolean"), Column("y", "numeric"))
LABELS: dict[str, tuple[str, ...]] = {"binary": ("no", "yes"), "multiclass": ("a", "b", "c"), "regression": ()}
ROWS = pl.DataFrame(
    {
        "n": [float(i % 13) if i % 7 else None for i in range(40)],
        "city": [("Rome", "Oslo", None, "Lima")[i % 4] for i in range(40)],
        "ok": [("yes", "no", None)[i % 3] for i in range(40)],
    }
)
X_BF = np.array([[1, 2, 0], [np.nan, 0, 1], [5, np.nan, np.nan]], dtype=np.float32)
W_F1 = weights(3)


def trees(task: Task = "binary", seed: int = 0) -> Trees:
    """Train small trees on noise."""
    rng = np.random.default_rng(seed)
    objective = {"binary": "binary:logistic", "multiclass": "multi:softprob", "regression": "reg:squarederror"}[task]
    classes = {"num_class": 3} if task == "multiclass" else {}
    rows = xgb.DMatrix(rng.normal(size=(60, 3)), rng.integers(0, 3 if classes else 2, 60))
    return Trees(xgb.train({"objective": objective, "max_depth": 2, "nthread": 1, **classes}, rows, num_boost_round=3))


def network(task: Task = "binary", has_spread: bool = False, seed: int = 0, stored: bytes | None = None) -> Network:
    """Make a network of three features."""
    return Network(graph(weights(3, 3 if task == "multiclass" else 1, seed), task, has_spread), stored)


def bundle_of(predictor: Predictor, task: Task = "binary", **changes: Any) -> Bundle:
    """Put a model into a bundle."""
    schema = Schema(COLUMNS, target="y", task=task, labels=LABELS[task])
    return Bundle(schema, Vocabulary({"city": ("Rome", "Oslo")}), predictor, 0.4, {"model": "loans"}, **changes)


def predictor_of(family: str, task: Task) -> Predictor:
    """Make a model of a family."""
    made: dict[str, Predictor] = {
        "xgboost": trees(task),
        "neural": network(task, stored=b"weights"),
        "blend": Blend(((0.25, trees(task)), (0.5, network(task)), (0.25, network(task, seed=1, stored=b"w")))),
    }
    return made[family]


MODEL_FILES = {
    "xgboost": {"model.ubj"},
    "neural": {"model.onnx", "model.safetensors"},
    "blend": {"part0.ubj", "part1.onnx", "part2.onnx", "part2.safetensors"},
}


class Recording:
    """A session that notes what is asked of it."""

    def __init__(self, session: Any) -> None:
        self.session, self.asked = session, list[tuple[list[str], int]]()

    def run(self, names: list[str], given: dict[str, NDArray[np.float32]]) -> Any:
        """Note outputs and rows, and run."""
        self.asked.append((names, len(given["x"])))
        return self.session.run(names, given)

    def __getattr__(self, name: str) -> Any:
        """Answer all else as the session does."""
        return getattr(self.session, name)


def recorded(made: Network) -> Recording:
    """Note from now on what is asked of a network."""
    made._session = Recording(made._running())
    return made._session


# Networks


def test_a_network_gives_what_its_graph_says() -> None:
    """Scores are those of the graph, NaN being handed to it as it is."""
    np.testing.assert_allclose(1 / (1 + np.exp(-linear(X_BF, W_F1)[:, 0])), network().scores(X_BF), rtol=1e-6)


def test_a_multiclass_network_gives_a_row_of_scores() -> None:
    """A graph of several classes gives shape (rows, classes), in float32."""
    scores = network("multiclass").scores(X_BF)

    assert ((3, 3), np.float32) == (scores.shape, scores.dtype)
    np.testing.assert_allclose(np.ones(3), scores.sum(axis=1), rtol=1e-6)


def test_a_network_tells_a_spread_where_its_graph_has_one() -> None:
    """A graph with the output has a spread of each row, one without has none."""
    made = network("regression", has_spread=True)
    spread = made.spread(X_BF)

    assert (None, None) == (network().spread(X_BF), network().scored(X_BF)[1])
    assert spread is not None
    np.testing.assert_allclose(np.abs(linear(X_BF, W_F1)[:, 0]), spread, rtol=1e-5)
    assert [made.scores(X_BF).tolist(), spread.tolist()] == [np.asarray(a).tolist() for a in made.scored(X_BF)]


def test_many_rows_are_scored_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each run takes a bounded number of rows, and the answers come together in order."""
    monkeypatch.setattr(network_module, "CHUNK_ROWS", 4)
    x_BF = np.random.default_rng(0).normal(size=(10, 3)).astype(np.float32)
    made = network("regression", has_spread=True)
    session = recorded(made)
    scores, spread = made.scored(x_BF)

    assert [(["scores", "spread"], 4), (["scores", "spread"], 4), (["scores", "spread"], 2)] == session.asked
    assert spread is not None
    np.testing.assert_allclose(linear(x_BF, W_F1)[:, 0], scores, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(np.abs(scores), spread)


def test_one_thread_is_one_thread() -> None:
    """A network runs in all threads that it may use, until it is told to use one, and answers the same."""
    made = network()
    before = made.scores(X_BF)
    num_threads = [made._running().get_session_options().intra_op_num_threads]
    made.use_one_thread()
    num_threads.append(made._running().get_session_options().intra_op_num_threads)

    assert [usable_threads(), 1] == num_threads
    assert before.tolist() == made.scores(X_BF).tolist()


@pytest.mark.parametrize(("asked", "expected"), [("3", 3), ("", None), ("0", None), ("2,1", None)])
def test_threads_are_bounded_as_for_xgboost(monkeypatch: pytest.MonkeyPatch, asked: str, expected: int | None) -> None:
    """OMP_NUM_THREADS, which workers set for XGBoost, counts for networks too; without it all cores do."""
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 3, 5, 6}, raising=False)

    assert (expected or 4) == usable_threads()


def test_a_graph_that_cannot_be_run_is_refused() -> None:
    """What is no graph, or one of a newer ONNX, ends in one message."""
    with pytest.raises(InputError, match=r"ONNX Runtime [\d.]+ runs, but got .*INVALID_PROTOBUF.*\. Install the v"):
        Network(b"no graph").scores(X_BF)


def test_rows_that_cannot_be_run_are_told() -> None:
    """What ONNX Runtime refuses while it runs is an error that a server knows, and no mistake of its caller."""
    with pytest.raises(ValueError, match=r"runs on every row, but got .*invalid dimensions.*(?s:.*)Keep the version"):
        network().scores(X_BF[:, :2])


# Blends


def test_a_blend_is_the_weighted_mean() -> None:
    """A blend's scores are the mean of its parts' scores, by weight."""
    parts = trees(), network()
    first, second = (part.scores(X_BF) for part in parts)
    scores = Blend(((0.25, parts[0]), (0.75, parts[1]))).scores(X_BF)

    assert np.float32 == scores.dtype
    np.testing.assert_allclose(0.25 * first + 0.75 * second, scores, rtol=1e-6)


def test_a_blends_spread_is_that_of_the_parts_that_tell_one() -> None:
    """The mean goes over the parts that have a spread, by weight, and each part runs once; without any it is None."""
    one, other = network("regression", has_spread=True), network("regression", has_spread=True, seed=1)
    blend = Blend(((0.5, trees("regression")), (0.125, one), (0.375, other)))
    spreads = [part.spread(X_BF) for part in (one, other)]
    session = recorded(one)
    scores, spread = blend.scored(X_BF)

    assert [(["scores", "spread"], 3)] == session.asked
    assert spread is not None
    np.testing.assert_allclose(0.25 * spreads[0] + 0.75 * spreads[1], spread, rtol=1e-6)
    assert [scores.tolist(), spread.tolist()] == [np.asarray(f(X_BF)).tolist() for f in (blend.scores, blend.spread)]
    assert None is Blend(((0.5, trees()), (0.5, network()))).spread(X_BF)


@pytest.mark.parametrize("given", [(0.5, 0.6), (1.5, -0.5), (1.0, 0.0), ()])
def test_weights_are_those_of_a_mean(given: tuple[float, ...]) -> None:
    """Weights that are not positive, or do not sum to 1, are refused."""
    with pytest.raises(InputError, match=r"above 0 and sum to 1, but got weights=.*\. Divide them by their sum"):
        Blend(tuple((weight, network()) for weight in given))


# On disk


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
@pytest.mark.parametrize("family", list(MODEL_FILES))
def test_round_trip(tmp_path: Path, family: str, task: Task) -> None:
    """A bundle of any family has the files that it names, and answers the same when it is read again."""
    bundle = bundle_of(predictor_of(family, task), task).with_golden(ROWS.head(5))
    names = bundle.save(tmp_path)
    loaded = Bundle.load(tmp_path)
    loaded.check_golden()

    assert {*FILES, *MODEL_FILES[family]} == set(names) == {path.name for path in tmp_path.iterdir()}
    assert replace(bundle, predictor=None) == replace(loaded, predictor=None)  # type: ignore[arg-type]
    assert family == loaded.predictor.family
    assert_frame_equal(bundle.predict(ROWS), loaded.predict(ROWS), check_exact=True)
    assert loaded.predictor.num_bytes == sum((tmp_path / name).stat().st_size for name in MODEL_FILES[family])


@pytest.mark.parametrize("family", list(MODEL_FILES))
def test_a_stored_bundle_is_the_bundle(tmp_path: Path, family: str) -> None:
    """A bundle that is read from the store and put there again is the same object, whatever its family."""
    store = Store(str(tmp_path))
    ref = store_bundle(store, bundle_of(predictor_of(family, "binary")).with_golden(ROWS.head(5)))

    assert ref == store_bundle(store, load_bundle(store, ref))
    assert sorted({*FILES, *MODEL_FILES[family]}) == [Path(file.name).name for file in ref.files]


def test_trees_are_described_as_ever(tmp_path: Path) -> None:
    """A bundle of trees is written in format 1 with the keys that it has always had, so that its digest stays."""
    bundle_of(trees()).save(tmp_path)
    described = {"format": 1, "threshold": 0.4, "half_width": None, "facts": {"model": "loans"}}

    assert json.dumps(described, indent=1, sort_keys=True) == (tmp_path / "bundle.json").read_text()


def test_other_families_are_described_in_format_2(tmp_path: Path) -> None:
    """A blend's description names its files, and its parts with their weights."""
    bundle_of(predictor_of("blend", "binary")).save(tmp_path)

    assert {
        "format": 2,
        "family": "blend",
        "files": ["part0.ubj", "part1.onnx", "part2.onnx", "part2.safetensors"],
        "parts": [
            {"family": "xgboost", "weight": 0.25},
            {"family": "neural", "weight": 0.5},
            {"family": "neural", "weight": 0.25},
        ],
        "facts": {"model": "loans"},
        "half_width": None,
        "has_spread": False,
        "threshold": 0.4,
    } == json.loads((tmp_path / "bundle.json").read_text())


def redescribe(folder: Path, **changes: Any) -> None:
    """Change what a stored bundle says of itself."""
    described = json.loads((folder / "bundle.json").read_text())
    (folder / "bundle.json").write_text(json.dumps({**described, **changes}))


def test_a_newer_format_is_refused_before_its_files_are_missed(tmp_path: Path) -> None:
    """A bundle of a later version, which may have other files, asks for the upgrade and not for the files."""
    bundle_of(network()).save(tmp_path)
    redescribe(tmp_path, format=FORMAT + 1, files=["model.later"])
    with pytest.raises(InputError, match=r"up to format 3, but got format=4 in .*\. Upgrade evergreen"):
        Bundle.load(tmp_path)


def test_an_unknown_family_is_refused(tmp_path: Path) -> None:
    """A model of a family that this version does not know is named."""
    bundle_of(network()).save(tmp_path)
    redescribe(tmp_path, family="forest")
    with pytest.raises(InputError, match=r"families xgboost, neural, but got family=forest in .*\. Upgrade evergreen"):
        Bundle.load(tmp_path)


def test_a_missing_graph_is_named(tmp_path: Path) -> None:
    """A folder that lacks a file which the bundle names is refused with that name."""
    bundle_of(network()).save(tmp_path)
    (tmp_path / "model.onnx").unlink()
    with pytest.raises(InputError, match=r"golden\.json, model\.onnx, but got a folder without model\.onnx: "):
        Bundle.load(tmp_path)


@pytest.mark.parametrize("is_part", [False, True])
def test_a_network_of_other_features_is_refused(tmp_path: Path, is_part: bool) -> None:
    """A graph that takes more or fewer numbers than the schema has features never answers."""
    wrong = Network(graph(weights(5)))
    bundle_of(Blend(((1.0, wrong),)) if is_part else wrong).save(tmp_path)
    stem = "part0" if is_part else "model"
    with pytest.raises(InputError, match=rf"the 3 features of .*, but got num_features=5 in {stem}\.onnx\. Register"):
        Bundle.load(tmp_path)


def test_only_trees_have_a_booster(tmp_path: Path) -> None:
    """Who asks a bundle of another family for its booster, in memory or in the store, is told so."""
    made, blend = bundle_of(network()), bundle_of(predictor_of("blend", "binary"))
    store = Store(str(tmp_path))
    refs = [store_bundle(store, bundle) for bundle in (made, blend)]

    assert ["model.onnx", "part0.ubj"] == [Path(ref.model.name).name for ref in refs]
    with pytest.raises(ValueError, match="Trees have a booster, but got family=neural. Ask the predictor."):
        _ = made.booster
    for ref in refs:
        with pytest.raises(ValueError, match=f"A bundle of trees has a booster, but got {ref.model.name}"):
            _ = ref.booster


# Answers


@pytest.mark.parametrize("predictor", [network("regression", True), Blend(((1.0, network("regression", True)),))])
def test_a_bundle_with_a_spread_answers_it_last(tmp_path: Path, predictor: Predictor) -> None:
    """The spread is the last column, the others are as without it, and it survives the disk."""
    with_spread = bundle_of(predictor, "regression", half_width=0.5, has_spread=True)
    with_spread.save(tmp_path)
    answers = Bundle.load(tmp_path).predict(ROWS)
    without = replace(with_spread, has_spread=False).predict(ROWS)

    assert ["prediction", "prediction_low", "prediction_high", "prediction_spread"] == answers.columns
    assert pl.Float64 == answers.schema["prediction_spread"]
    assert_frame_equal(without, answers.drop("prediction_spread"), check_exact=True)
    assert_frame_equal(answers.head(0), with_spread.predict(ROWS.head(0)))


def test_an_answer_with_a_spread_is_one_run() -> None:
    """Scores and spread of a request come from one run of the network; without a spread none is computed."""
    made = network("regression", has_spread=True)
    session = recorded(made)
    bundle_of(made, "regression", has_spread=True).predict(ROWS)
    bundle_of(made, "regression").predict(ROWS)

    assert [(["scores", "spread"], 40), (["scores"], 40)] == session.asked


def test_a_later_code_counts_as_unknown_for_networks() -> None:
    """A network gets code 0 for codes that its vocabulary does not have, NaN for what is missing."""
    bundle = bundle_of(network())
    encoded = encode_frame(ROWS.head(6), bundle.schema, bundle.vocabulary)
    scores = [bundle.scores(encoded.with_columns(city=pl.lit(c, dtype=pl.Int32))).tolist() for c in (0, 3, 9999)]

    assert scores[0] == scores[1] == scores[2]


@pytest.mark.parametrize(
    ("family", "fits", "fails"), [("xgboost", 5e-7, 5e-6), ("neural", 5e-6, 5e-5), ("blend", 5e-6, 5e-5)]
)
def test_golden_predictions_hold_within_float32(family: str, fits: float, fails: float) -> None:
    """Networks, whose sums differ between machines, may be off by more than trees, but not by much."""
    bundle = bundle_of(predictor_of(family, "binary")).with_golden(ROWS.head(5))
    rows, scores = bundle.golden
    replace(bundle, golden=(rows, [[score + fits] for (score,) in scores])).check_golden()
    with pytest.raises(ValueError, match=r"golden predictions to within 1e-0[56], but got a difference="):
        replace(bundle, golden=(rows, [[score + fails] for (score,) in scores])).check_golden()


# What is imported


@pytest.mark.parametrize(
    ("family", "expected"),
    [("xgboost", {"xgboost"}), ("neural", {"onnxruntime"}), ("blend", {"onnxruntime", "xgboost"})],
)
def test_a_bundle_requires_what_runs_it(family: str, expected: set[str]) -> None:
    """An MLflow model needs XGBoost only where there are trees, and ONNX Runtime only where there is a network."""
    names = {line.partition("==")[0] for line in requirements(bundle_of(predictor_of(family, "binary")))}

    assert expected == names - {"numpy", "pandas", "polars", "pyarrow"}


def test_a_bundle_of_networks_loads_neither_xgboost_nor_torch(tmp_path: Path) -> None:
    """To load a network's bundle and to answer takes ONNX Runtime alone, and writes nothing to the terminal."""
    bundle = bundle_of(network()).with_golden(ROWS.head(5))
    bundle.save(tmp_path)
    code = (
        "import sys, json; from pathlib import Path; from infra.bundle.model import Bundle, golden_frame; "
        f"bundle = Bundle.load(Path({str(tmp_path)!r})); bundle.check_golden(); "
        "print([name for name in ('onnxruntime', 'torch', 'xgboost', 'onnx') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)

    assert ("['onnxruntime']\n", "") == (done.stdout, done.stderr)


def test_a_bundle_of_trees_loads_no_onnxruntime(tmp_path: Path) -> None:
    """Who serves trees does not wait for what runs networks."""
    bundle_of(trees()).with_golden(ROWS.head(5)).save(tmp_path)
    code = (
        "import sys; from pathlib import Path; from infra.bundle.model import Bundle; "
        f"Bundle.load(Path({str(tmp_path)!r})).check_golden(); print('onnxruntime' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)

    assert "False\n" == done.stdout
