"""Weights of fewer bits in the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from _small_networks import uncompressed

from tasks._techniques._network_graph import float_graph
from tasks._techniques._network_parts import parts_of
from tasks._techniques.short_weights import TECHNIQUE


@pytest.mark.parametrize("architecture", ["tabm-mini", "mlp"])
def test_fewer_bits_are_smaller_and_nearly_the_same(tmp_path: Path, architecture: str) -> None:
    """32, 16 and 8 bits make ever smaller files, whose scores are farther from the network's, but near."""
    given = uncompressed(tmp_path, architecture=architecture, width=64)
    forms = list(TECHNIQUE.build(given))
    rows_BF = given.validation.x_BF
    off = [float(np.abs(form.final.scores(rows_BF) - given.final.scores(rows_BF)).max()) for form in forms]
    sizes = [form.final.num_bytes for form in forms]

    assert ["32-bit weights", "16-bit weights", "8-bit weights"] == [form.name for form in forms]
    assert sizes == sorted(sizes, reverse=True)
    assert off[0] < 1e-6 < off[1] < off[2] < 0.01


def test_weights_beyond_16_bits_keep_32(tmp_path: Path) -> None:
    """A matrix with a weight that float16 can't hold is kept as it is; it would be infinite otherwise."""
    given = uncompressed(tmp_path)
    parts = parts_of(given.job, given.final)
    parts.layers[1][0][0, 0] = 1e5

    assert np.isfinite(type(given.final)(float_graph(parts, "float16")).scores(given.train.x_BF)).all()
    assert float_graph(parts, "float16").count(np.float32(1e5).tobytes()) == 1
