"""The page of figures that `make bench` writes."""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks._performance import TARGETS, page

ROOT = Path(__file__).parents[2]
RECORD = {
    "benchmark": "orchestration",
    "figures": {"overhead_seconds_embedded": 14.5, "cached_rerun_vs_first": 0.2, "seconds_bare": 9.123},
    "machine": {
        "processor": "Some CPU",
        "cores": 2,
        "memory_gib": 23.4,
        "system": "Linux x86_64",
        "load_1_minute": 1.5,
    },
    "versions": {"python": "3.11.7", "dask": "2026.8.0"},
}


def test_the_page_holds_every_figure_with_its_target() -> None:
    """A figure is met, missed, or only shown; what it was measured with and when is on the page."""
    text = page([RECORD], "2026-11-21")

    assert [
        "| orchestration.py | overhead_seconds_embedded | 14.5 | <= 15 | met |",
        "| orchestration.py | cached_rerun_vs_first | 0.2 | <= 0.1 | **missed** |",
        "| orchestration.py | seconds_bare | 9.123 |  |  |",
    ] == re.findall(r"^\| orchestration.*$", text, re.MULTILINE)
    assert "Targets missed: 1." in text
    assert "on 2026-11-21" in text
    assert text.endswith(
        "- orchestration.py: 2 cores of Some CPU, 23.4 GiB, Linux x86_64, load 1.5 at its end; "
        "python 3.11.7, dask 2026.8.0.\n"
    )


def test_every_script_has_its_targets() -> None:
    """A script that is in benchmarks/ is known to the page, so that a missed target cannot go unseen."""
    scripts = {path.stem for path in (ROOT / "benchmarks").glob("[a-z]*.py")}

    assert set() == scripts - set(TARGETS) - {"neural_quality"}
