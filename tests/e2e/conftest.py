"""What the tests from outside share: a Prefect server, and trained workspaces that each test gets back unspoilt."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
from _drive import LEAN, MONTHS, PROMOTE_IF_FRESHER, State, Workspace

from infra.prefect_server import embedded_server

pytest.register_assert_rewrite("_up")

GIT = ("git", "-c", "user.name=Test", "-c", "user.email=test@example.com", "-c", "commit.gpgsign=false")


@pytest.fixture(scope="session")
def prefect_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Give one Prefect server to all runs: each would start its own otherwise."""
    with embedded_server(tmp_path_factory.mktemp("prefect")) as url:
        yield url


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, prefect_api: str) -> State:
    """Return the state after the first retrain of a workspace that is a git repository."""
    folder = tmp_path_factory.mktemp("e2e") / "loans"
    folder.mkdir()
    workspace = Workspace(folder, {"PREFECT_API_URL": prefect_api})
    workspace.grow(MONTHS)
    if shutil.which("git"):
        (folder / ".gitignore").write_text(".evergreen/\n")
        for arguments in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--message", "Lend"]):
            assert workspace.run(*GIT, *arguments).code == 0
    last = workspace.evergreen("retrain", "--json")
    return State.keep(workspace, last, folder.with_name("trained"))


@pytest.fixture(scope="session")
def grown(trained: State) -> State:
    """Return the state after a month was added and its model promoted."""
    workspace = trained.restore()
    workspace.grow(MONTHS + 1)
    last = workspace.evergreen("retrain", "--json", *LEAN, *PROMOTE_IF_FRESHER)
    return State.keep(workspace, last, trained.kept.with_name("grown"))


@pytest.fixture
def workspace(trained: State) -> Workspace:
    """Give a workspace with version 1 in production."""
    return trained.restore()


@pytest.fixture
def grown_workspace(grown: State) -> Workspace:
    """Give a workspace with version 2 in production and version 1 before it."""
    return grown.restore()
