"""The line that every benchmark ends with: its figures, the machine and the versions, as one JSON object."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path


def print_record(benchmark: str, figures: Mapping[str, float], libraries: Sequence[str]) -> None:
    """Print the line; `libraries` are the packages whose releases matter for the figures."""
    versions = {"python": platform.python_version(), **{name: version(name) for name in libraries}}
    rounded = {name: float(f"{value:.4g}") for name, value in figures.items()}
    line = {"benchmark": benchmark, "figures": rounded, "machine": machine(), "versions": versions}
    print(json.dumps(line), flush=True)


def machine() -> dict[str, str | float]:
    """Return what the figures depend on, with how busy the cores were: other work makes every time longer."""
    return {
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "load_1_minute": round(os.getloadavg()[0], 2),
    }


def processor() -> str:
    """Return the processor's name, as far as the system tells."""
    described = Path("/proc/cpuinfo")
    lines = described.read_text().splitlines() if described.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def progress(text: str) -> None:
    """Tell whoever watches how far the benchmark is; standard output is for the line."""
    print(text, file=sys.stderr, flush=True)
