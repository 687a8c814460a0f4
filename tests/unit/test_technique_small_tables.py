"""Networks with smaller embedding tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from _small_networks import uncompressed

from tasks._techniques._network_graph import float_graph, with_odd_values
from tasks._techniques._network_parts import parts_of
from tasks._techniques.small_tables import RARE_ROWS, TECHNIQUE, code_counts, is_rare, with_merged_rows
from tasks._techniques.technique import Uncompressed


def cities(num_rows: int = 3000) -> pl.DataFrame:
    """Return rows with a code of which a few values are frequent and hundreds are rare."""
    rng = np.random.default_rng(0)
    city = np.where(rng.random(num_rows) < 0.6, rng.integers(0, 10, num_rows), rng.integers(10, 700, num_rows))
    return pl.DataFrame(
        {
            "row": np.arange(num_rows),
            "x": rng.normal(size=num_rows),
            "city": pl.Series(city).cast(pl.String) + " town",
            "y": (rng.random(num_rows) < 0.5).astype(np.int64),
        }
    )


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Uncompressed:
    """A network most of whose bytes are a table."""
    return uncompressed(tmp_path_factory.mktemp("given"), frame=cities(), architecture="wide", embedding=16)


def test_tables_of_8_bits_and_merged_ones_are_offered(given: Uncompressed) -> None:
    """Tables of 8 bits are near the whole ones, and merged ones are smaller still; odd values are treated alike."""
    forms = list(TECHNIQUE.build(given))
    rows_BF = np.concatenate([given.validation.x_BF, with_odd_values(given.validation.x_BF)])
    sizes = [form.final.num_bytes for form in forms]

    assert ["8-bit tables", "rare codes merged, 16-bit weights", "rare codes merged, 8-bit"] == [f.name for f in forms]
    np.testing.assert_allclose(forms[0].final.scores(rows_BF), given.final.scores(rows_BF), rtol=0, atol=0.01)
    assert len(given.final.onnx) > 2.5 * sizes[0] and sizes[0] > sizes[1] > sizes[2]


def test_rare_codes_share_a_row_and_others_keep_theirs(given: Uncompressed) -> None:
    """Rows with frequent, unknown and missing codes have the whole network's scores; rare ones have one another's."""
    parts, (count_R,) = parts_of(given.job, given.final), code_counts(given.train, given.job)
    merged = type(given.final)(float_graph(with_merged_rows(parts, [count_R])))
    (code,) = given.job.inputs.codes
    rows_BF = np.repeat(given.train.x_BF[:1], code.size + 1, 0)
    rows_BF[:, code.position] = [np.nan, *range(code.size)]
    rare_R = is_rare(count_R)
    found = merged.scores(rows_BF)

    assert 100 < int(rare_R.sum()) < code.size and not rare_R[:2].any()
    np.testing.assert_allclose(found[~rare_R], given.final.scores(rows_BF)[~rare_R], rtol=0, atol=1e-6)
    assert 1 == len(set(found[rare_R].tolist()))


def test_codes_are_counted_with_missing_and_unknown_ones(given: Uncompressed) -> None:
    """Every training row is counted once for each code, whatever it holds, and few rows make a code rare."""
    (count_R,) = code_counts(given.train, given.job)

    assert len(given.train) == int(count_R.sum())
    assert [False, False, True, False] == is_rare(np.array([0, 0, RARE_ROWS - 1, RARE_ROWS])).tolist()


def test_small_tables_stay(tmp_path: Path, given: Uncompressed) -> None:
    """A network whose tables are a small part of it is left as it is."""
    assert (True, False) == (TECHNIQUE.applies_to(given), TECHNIQUE.applies_to(uncompressed(tmp_path, width=32)))
