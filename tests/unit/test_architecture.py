"""What the contracts in pyproject.toml cannot say: import-linter knows no pattern such as `tasks._*`."""

from __future__ import annotations

from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[2]
PURE = tuple(f"tasks.{path.stem}" for path in sorted((ROOT / "tasks").glob("_[!_]*.py")))
NEVER = ("distributed", "mlflow", "prefect")
NOT_DIRECTLY = ("boto3", "httpx")
"""infra.storage, which pure modules may use, imports boto3 when it first speaks to S3."""


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    """Read who imports whom."""
    return grimp.build_graph(
        "flows",
        "tasks",
        "infra",
        include_external_packages=True,
        exclude_type_checking_imports=True,
        cache_dir=None,
    )


@pytest.mark.parametrize("module", PURE)
def test_pure_module_reaches_no_service(graph: grimp.ImportGraph, module: str) -> None:
    """A pure module imports neither an orchestrator nor a tracker nor a cluster, through other modules neither."""
    chains = [graph.find_shortest_chain(module, service) for service in NEVER if service in graph.modules]

    assert [] == [chain for chain in chains if chain]


@pytest.mark.parametrize("module", PURE)
def test_pure_module_imports_no_network_client(graph: grimp.ImportGraph, module: str) -> None:
    """A pure module speaks to no network itself."""
    assert set() == graph.find_modules_directly_imported_by(module) & set(NOT_DIRECTLY)
