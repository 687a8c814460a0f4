"""Write the page of figures from the lines that the benchmarks print: `_performance.py LINES PAGE`."""

from __future__ import annotations

import json
import operator
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

TARGETS: dict[str, dict[str, tuple[str, float]]] = {
    "encode": {"speedup_vs_dask_dataframe": (">=", 3), "time_vs_polars": ("<=", 1.5)},
    "encode_memory": {"peak_worker_bytes": ("<=", 1.5e9), "growth_50m_vs_2m": ("<=", 1.1)},
    "incremental": {"time_one_new_of_61": ("<=", 0.05), "files_read": ("=", 1)},
    "encode_scaling": {"speedup_2_workers": (">=", 1.8)},
    "large_data": {"peak_worker_bytes": ("<=", 2e9)},
    "xgboost_train": {"cpu_time_vs_bare": ("<=", 1.05), "max_prediction_difference": ("=", 0)},
    "xgboost_memory": {"peak_vs_raw": ("<=", 1.3), "peak_vs_raw_external": ("<=", 1.0)},
    "planner": {"memory_error_worst": ("<=", 0.25), "num_out_of_memory": ("=", 0)},
    "xgboost_gang": {"cpu_time_vs_xgboost_dask": ("<=", 1.0), "distinct_models_in_5_runs": ("=", 1)},
    "external_memory": {"data_over_memory_limit": (">=", 4), "time_vs_in_memory": ("<=", 2.5)},
    "search": {
        "holdout_gain": (">=", 0),
        "compute_vs_no_pruning": ("<=", 0.4),
        "validation_loss_vs_no_pruning": ("<=", 1.002),
    },
    "search_neural": {},
    "neural_train": {"throughput_vs_bare": (">=", 0.95)},
    "neural_parallel": {
        "max_loss_difference": ("<=", 1e-5),
        **{f"peak_member_vs_single_{how}": ("<=", 0.7) for how in ("fsdp", "tensor", "pipeline")},
    },
    "compression": {
        "tree_size_speedup": (">=", 8),
        "tree_batch_speedup": (">=", 5),
        "tree_row_speedup": (">=", 20),
        "tree_loss": ("<=", 0.002),
        "network_size_speedup": (">=", 3.5),
        "network_batch_speedup": (">=", 2),
        "network_loss": ("<=", 0.0005),
        "runtime_regret": ("<=", 1.25),
    },
    "tree_runtimes": {
        "runtime_regret": ("<=", 1.25),
        "row_speedup_small_vs_large": (">=", 20),
        "row_vs_batch_difference": ("=", 0),
        "difference_to_xgboost": ("<=", 1e-5),
    },
    "serving": {
        "throughput_vs_mlflow_1": (">=", 20),
        "p50_speedup_1": (">=", 20),
        "start_speedup": (">=", 8),
        "memory_vs_mlflow": ("<=", 0.33),
        "throughput_vs_mlflow_100": (">=", 8),
        "throughput_vs_bare": (">=", 0.77),
    },
    "swap": {
        "swaps": (">=", 50),
        "failed_requests": ("=", 0),
        "mixed_answers": ("=", 0),
        "p99_during_swap_vs_before": ("<=", 1.5),
    },
    "drift": {
        "false_alarm_rate_vs_promised": ("<=", 2),
        "detection_delay_windows": ("<=", 2),
        "gain_vs_daily": (">=", 0.95),
        "runs_vs_daily": ("<=", 0.25),
        "speedup_vs_evidently": (">=", 20),
    },
    "promotion": {"false_promotions_per_year_vs_budget": ("<=", 1.0), "power_vs_single_test": (">=", 0.8)},
    "neural_quality": {"share_network_not_worse": (">=", 0.5), "regret_of_best_of_families": ("<=", 1)},
    "orchestration": {
        "overhead_seconds_embedded": ("<=", 15),
        "overhead_seconds_with_server": ("<=", 5),
        "cached_rerun_vs_first": ("<=", 0.1),
    },
}
"""What is asked of a figure; the others are shown only."""

COMPARISONS: dict[str, Callable[[float, float], bool]] = {"<=": operator.le, ">=": operator.ge, "=": operator.eq}


def page(records: list[dict[str, Any]], day: str) -> str:
    """Return the page: a table of all figures, and what each benchmark ran on."""
    missed = sum(
        _verdict(record["benchmark"], *figure) == "**missed**" for record in records for figure in _items(record)
    )
    lines = [
        "# Performance",
        "",
        f"Written by `make bench` on {day}; each line of the table is a figure of a script in benchmarks/. Ratios are "
        "ours over theirs unless the name says `speedup`. Other work on the machine makes every time longer: the "
        f"load is given below. Targets missed: {missed}.",
        "",
        "| script | figure | value | target | |",
        "|---|---|---:|---:|---|",
        *(_row(record["benchmark"], name, value) for record in records for name, value in _items(record)),
        "",
        "## Machines and versions",
        "",
        *(_conditions(record) for record in records),
    ]
    return "\n".join(lines) + "\n"


def _items(record: dict[str, Any]) -> list[tuple[str, float]]:
    return list(record["figures"].items())


def _row(benchmark: str, name: str, value: float) -> str:
    target = TARGETS.get(benchmark, {}).get(name)
    shown = f"{target[0]} {target[1]:g}" if target else ""
    return f"| {benchmark}.py | {name} | {value:,.4g} | {shown} | {_verdict(benchmark, name, value)} |"


def _verdict(benchmark: str, name: str, value: float) -> str:
    target = TARGETS.get(benchmark, {}).get(name)
    if target is None:
        return ""
    comparison, bound = target
    return "met" if COMPARISONS[comparison](value, bound) else "**missed**"


def _conditions(record: dict[str, Any]) -> str:
    machine = record["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    return (
        f"- {record['benchmark']}.py: {machine['cores']} cores of {machine['processor']}, "
        f"{machine['memory_gib']:g} GiB, {machine['system']}, load {machine['load_1_minute']:g} at its end; {versions}."
    )


def main() -> None:
    """Read the lines and write the page."""
    lines, written = map(Path, sys.argv[1:])
    records = [json.loads(line) for line in lines.read_text().splitlines()]
    written.write_text(page(records, f"{datetime.now(UTC):%Y-%m-%d}"))
    print(f"The figures are in {written}.")


if __name__ == "__main__":
    main()
