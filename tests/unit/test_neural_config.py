"""What a network is set to, and what is derived where nothing is set."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tasks._neural.config import MAX_BATCH_ROWS, MAX_EPOCHS, MIN_BATCH_ROWS, MIN_EPOCHS, NeuralConfig


def test_every_setting_is_described() -> None:
    """Every setting has a description, which ends as a sentence."""
    texts = {name: field.description or "" for name, field in NeuralConfig.model_fields.items()}

    assert [] == [name for name, text in texts.items() if not text.endswith(".")]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("architecture", "tabm"),
        ("parallelism", "model"),
        ("epochs", 0),
        ("batch_rows", 0),
        ("learning_rate", 0),
        ("warmup_fraction", 1),
        ("ema", 1),
        ("dropout", 1),
        ("bins", 1),
        ("clip_norm", -1),
        ("precision", "float16"),
        ("layers", 3),
    ],
)
def test_what_cannot_be_trained_is_refused(field: str, value: Any) -> None:
    """A setting that no training could use, or that does not exist, is refused by its name."""
    with pytest.raises(ValidationError, match=field):
        NeuralConfig.model_validate({field: value})


def test_a_configuration_is_repeatable_from_its_json() -> None:
    """What is logged as JSON reads as the same configuration."""
    config = NeuralConfig(architecture="wide", epochs=3, ema=0.9)

    assert config == NeuralConfig.model_validate_json(config.model_dump_json())


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.integers(0, 10**12))
def test_derived_numbers_stay_within_their_limits(num_rows: int) -> None:
    """Of any number of rows, epochs and rows of a step are within their limits, and the latter a power of two."""
    epochs, batch_rows = NeuralConfig().num_epochs(num_rows), NeuralConfig().num_batch_rows(num_rows)

    assert MIN_EPOCHS <= epochs <= MAX_EPOCHS
    assert MIN_BATCH_ROWS <= batch_rows <= MAX_BATCH_ROWS
    assert 0 == batch_rows & (batch_rows - 1)


def test_what_is_set_is_not_derived() -> None:
    """Epochs, rows of a step and patience that are set are kept, whatever the number of rows."""
    config = NeuralConfig(epochs=3, batch_rows=100, patience=1)

    assert (3, 100, 1) == (config.num_epochs(10**9), config.num_batch_rows(10), config.num_patience(64))


def test_patience_is_a_quarter_of_the_epochs() -> None:
    """A training waits a quarter of its epochs for a gain, and no fewer than four."""
    assert [4, 4, 16] == [NeuralConfig().num_patience(epochs) for epochs in (1, 16, 64)]
