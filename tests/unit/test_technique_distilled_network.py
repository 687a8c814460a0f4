"""Smaller networks that learn what a network answers."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from _small_networks import uncompressed

from infra.bundle.schema import Task
from tasks._neural.network import Target
from tasks._techniques import distilled_network
from tasks._techniques._fine_tune import hard, soft_losses
from tasks._techniques.distilled_network import TECHNIQUE, mixed
from tasks._techniques.technique import Rows


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_a_student_answers_nearly_as_its_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: Task) -> None:
    """Taught by answers alone, each student is nearer to its teacher's answers than a constant is."""
    monkeypatch.setattr(distilled_network, "HARD_SHARE", 0.0)
    monkeypatch.setattr(distilled_network, "NUM_EPOCHS", 12)
    monkeypatch.setattr(distilled_network, "SIZES", ((1, 16),))
    given = uncompressed(tmp_path, task, width=32, submodels=2, gain=20)
    forms = list(TECHNIQUE.build(given))
    names = [form.name for form in forms]

    assert ["student of 16 units, 16-bit weights", "student of 16 units, 8-bit"] == names
    for small, teacher in ((forms[0].pilot, given.pilot), (forms[0].final, given.final)):
        known = teacher.scores(given.validation.x_BF)
        off = np.mean((small.scores(given.validation.x_BF) - known) ** 2)
        assert off < 0.7 * np.mean((known - known.mean(0)) ** 2)


def test_students_are_smaller_than_their_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A student that would not be narrower than the network is not made."""
    monkeypatch.setattr(distilled_network, "NUM_EPOCHS", 1)
    given = uncompressed(tmp_path, width=40)
    names = [form.name for form in TECHNIQUE.build(given)]

    assert ["student of 32 units, 16-bit weights", "student of 32 units, 8-bit"] == names
    assert not TECHNIQUE.applies_to(uncompressed(tmp_path / "narrow", width=32))


def test_nothing_is_offered_when_time_is_over(tmp_path: Path) -> None:
    """A student that would not be taught in time is not offered."""
    given = uncompressed(tmp_path, width=40)

    assert [] == list(TECHNIQUE.build(replace(given, deadline=time.monotonic() - 1)))


def test_made_up_rows_have_values_of_real_ones() -> None:
    """Every value of a made-up row is one of its column, about a fifth are another row's, and none has a label."""
    rows = Rows(np.arange(4000, dtype=np.float32).reshape(2000, 2), np.ones(2000, np.float32), None)
    found = mixed(rows, 0)

    assert all(set(found.x_BF[:, i]) <= set(rows.x_BF[:, i]) for i in range(2))
    assert 0.17 < float((found.x_BF != rows.x_BF).mean()) < 0.23
    assert bool(np.isnan(found.label_B).all())


def test_a_soft_loss_of_a_sure_label_is_the_training_s() -> None:
    """Where all of a probability is on the label, the loss is that of a training, for every task."""
    rows = Rows(np.zeros((4, 1), np.float32), np.float32([0, 1, 1, 0]), None)
    for task, num_outputs in (("binary", 1), ("regression", 1), ("multiclass", 2)):
        raw_BKO = torch.randn(4, 3, num_outputs, generator=torch.Generator().manual_seed(0))
        target = Target(task)
        wanted_BC = torch.from_numpy(hard(rows, task, num_outputs))
        known = target.losses(raw_BKO, torch.from_numpy(rows.label_B))

        torch.testing.assert_close(soft_losses(target, raw_BKO, wanted_BC), known)
