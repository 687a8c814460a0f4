"""Techniques as another package would bring them: bad ones, and one that is good."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

CODE = """
import os, signal, time
import numpy as np
import xgboost as xgb
from infra.bundle.trees import Trees
from tasks._techniques.technique import Built


class Planted:
    cost = 0.5

    def applies_to(self, given):
        return isinstance(given.final, Trees)


class Good(Planted):
    name = "good"

    def build(self, given):
        most = max(1, given.num_rounds * 3 // 4)
        yield Built("a good one", *(Trees(t.booster[:most]) for t in (given.pilot, given.final)))


class Raising(Planted):
    name = "raising"

    def build(self, given):
        yield Built("before the error", given.pilot, given.final)
        raise ZeroDivisionError("planted")


class Crashing(Planted):
    name = "crashing"

    def build(self, given):
        os.kill(os.getpid(), signal.SIGSEGV)
        yield


class Hanging(Planted):
    name = "hanging"
    cost = 9.0

    def build(self, given):
        time.sleep(600)
        yield


class Whole:
    family = "xgboost"
    num_bytes = 1

    def __init__(self, trees, answer=lambda scores: scores, cut=0):
        self.trees, self.answer, self.cut = trees, answer, cut

    def scores(self, x_BF):
        return self.answer(self.trees.scores(x_BF))

    def spread(self, x_BF):
        return None

    def save(self, folder, stem="model"):
        names = self.trees.save(folder, stem)
        path = folder / names[0]
        path.write_bytes(path.read_bytes()[: path.stat().st_size - self.cut])
        return names


class Careless(Whole):
    def scores(self, x_BF):
        return np.where(np.isnan(x_BF).any(axis=1), np.float32(0.99), self.trees.scores(x_BF))


class Breaking(Planted):
    name = "breaking"

    def build(self, given):
        yield Built("a broken file", given.pilot, Whole(given.final, cut=100))


class Unsound(Planted):
    name = "unsound"

    def build(self, given):
        answers = {
            "not finite": lambda scores: scores * np.nan,
            "no probability": lambda scores: scores + 1,
            "another shape": lambda scores: scores[:, None],
            "of the batch": lambda scores: scores * (0.5 + scores.mean() / 2),
            "not in its file": lambda scores: scores / 2,
        }
        for name, answer in answers.items():
            yield Built(name, given.pilot, Whole(given.final, answer))
        yield Built("other where one is missing", Careless(given.pilot), Careless(given.final))


class Slow(Planted):
    name = "slow"

    def build(self, given):
        parameters = {**given.parameters, "learning_rate": 1e-6, "max_depth": 8, "nthread": 1}
        forms = []
        for trees in (given.pilot, given.final):
            rows = xgb.DMatrix(given.train.x_BF, given.train.label_B, feature_names=trees.booster.feature_names)
            rows.feature_names, rows.feature_types = trees.booster.feature_names, trees.booster.feature_types
            forms.append(Trees(xgb.train(parameters, rows, 1500, xgb_model=trees.booster)))
        yield Built("many more trees", *forms)


class Flipping(Planted):
    name = "flipping"

    def build(self, given):
        x = given.train.x_BF[:, 0]
        low, high = np.quantile(x, [0.9, 0.92])
        forms = []
        for trees in (given.pilot, given.final):
            scores = trees.scores(given.train.x_BF)
            wrong = np.where((x > low) & (x < high), 1 - scores, scores)
            rows = xgb.DMatrix(given.train.x_BF, wrong)
            rows.feature_names, rows.feature_types = trees.booster.feature_names, trees.booster.feature_types
            parameters = {"objective": "binary:logistic", "max_depth": 8, "learning_rate": 0.5, "lambda": 0,
                          "min_child_weight": 0, "max_bin": 2048, "nthread": 1}
            forms.append(Trees(xgb.train(parameters, rows, 20)))
        yield Built("2% flipped", *forms)
"""


@contextmanager
def planted(folder: Path, *names: str) -> Iterator[None]:
    """Have techniques of these classes, and nothing of them afterwards."""
    module = f"planted_{uuid.uuid4().hex[:8]}"
    (folder / f"{module}.py").write_text(CODE)
    package = folder / f"{module}-1.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    points = "".join(f"{name} = {module}:{name.capitalize()}\n" for name in names)
    (package / "entry_points.txt").write_text(f"[evergreen.techniques]\n{points}")
    # An entry point names an instance; these are classes without state.
    (folder / f"{module}.py").write_text(CODE + "".join(f"\n{n.capitalize()} = {n.capitalize()}()" for n in names))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield
    sys.modules.pop(module, None)
