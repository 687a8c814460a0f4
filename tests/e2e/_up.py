"""`evergreen up` from outside: schedules, the pages in a browser, outages, kills. There is a file per database.

The tests share a platform and go by their order: the short schedule is at work until the file names a long one.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import psutil
import pytest
from _drive import CHECKOUT, wait_for_version
from _platform import INTERVAL_SECONDS, PASSWORD, RUN_SECONDS, SLOW, Platform, wait

from infra.processes import free_port

if TYPE_CHECKING:
    from playwright.sync_api import Page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PICTURES = Path(os.environ.get("EVERGREEN_TEST_PICTURES", CHECKOUT / "build" / "pictures"))
PAGE_MS = 90_000
CLICKS, CLICK_MS = 5, 20_000
CRASH_SECONDS = 60
"""Within which a killed run is seen as crashed; docs/operations.md says so."""


def keep_picture(page: Page, platform: Platform, name: str) -> None:
    """Keep a screenshot where people can look at it."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=PICTURES / f"{'postgres' if platform.headers else 'sqlite'}-{name}.png", full_page=True)


def submit(page: Page) -> None:
    """Send a form until the server takes it. While a machine is busy the page can miss a click."""
    from playwright.sync_api import TimeoutError as Unanswered

    for _ in range(CLICKS):
        with suppress(Unanswered):
            with page.expect_response(re.compile("/create_flow_run$"), timeout=CLICK_MS) as sent:
                page.get_by_role("button", name="Submit").click()
            if sent.value.ok:  # SQLite under load answers 503, and a person clicks again
                return
    pytest.fail(f"The form is not sent after {CLICKS} clicks.")


def kill_workers(process: psutil.Process, older_than_seconds: float) -> None:
    """Kill the workers of a run's process that have been there for a while."""
    for child in process.children(recursive=True):
        with suppress(psutil.Error):
            is_worker = "spawn_main" in " ".join(child.cmdline())
            if is_worker and time.time() - child.create_time() > older_than_seconds:
                child.kill()


def due(run: dict[str, Any]) -> datetime:
    """Return when a run was due."""
    return datetime.fromisoformat(run["expected_start_time"])


class PlatformSuite:
    """What holds of a running platform; a file gives the fixture `platform`, with scope class."""

    @pytest.fixture(scope="class")
    def page(self, platform: Platform, require: Callable[[str, bool], None]) -> Iterator[Page]:
        """Give a page of a real browser, signed in where there is a password."""
        require("Chromium", CHROMIUM is not None)
        from playwright.sync_api import sync_playwright

        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            context = browser.new_context(viewport={"width": 1400, "height": 1300})
            context.set_default_timeout(PAGE_MS)
            opened = context.new_page()
            opened.goto(platform.url)
            if platform.headers:
                opened.locator("input[type=password]").fill(PASSWORD)
                opened.keyboard.press("Enter")
            opened.get_by_role("link", name="Deployments").wait_for()
            yield opened
            browser.close()

    def test_one_command_starts_everything(self, platform: Platform) -> None:
        """Prefect, MLflow and the deployments of both models are there; `evergreen status` names them."""
        status = platform.command("status", "--json").answer
        names = [f"{flow}/{model}" for flow in ("retrain", "predict", "maintain") for model in ("loans", "tiny")]

        assert {"prefect": platform.url, "mlflow": platform.mlflow} == status["services"]
        assert ["loans", "tiny"] == [model["model"] for model in status["models"]]
        assert 200 == httpx.get(platform.mlflow).status_code
        assert names == [f"{name.split('/')[0]}/{platform.deployment(*name.split('/'))['name']}" for name in names]

    def test_the_form_is_the_configuration(self, platform: Platform) -> None:
        """The form's fields are the configuration's, with descriptions, choices, limits and the file's values."""
        deployment = platform.deployment("retrain", "tiny")
        definitions = deployment["parameter_openapi_schema"]["definitions"]
        rounds = definitions["XGBoostConfig"]["properties"]["rounds"]
        overlap = definitions["ScheduleConfig"]["properties"]["overlap"]

        assert 20 == deployment["parameters"]["config"]["train"]["xgboost"]["rounds"]
        assert (1, 100_000, "Most boosting rounds.") == (rounds["minimum"], rounds["maximum"], rounds["description"])
        assert ["queue", "skip"] == overlap["enum"]
        assert (1, "ENQUEUE") == (
            deployment["global_concurrency_limit"]["limit"],
            deployment["concurrency_options"]["collision_strategy"],
        )

    def test_a_schedule_runs_by_itself(self, platform: Platform) -> None:
        """A deployment with a short interval runs at least three times, one slot each."""

        def done() -> list[dict[str, Any]]:
            return [run for run in platform.runs("retrain", "tiny") if run["state_name"] in ("Completed", "Skipped")]

        wait(lambda: len(done()) >= 3, RUN_SECONDS, "no three runs", platform.explain)
        slots = [run["expected_start_time"] for run in done()]

        assert all(run["auto_scheduled"] for run in done())
        assert len(set(slots)) == len(slots)

    def test_an_outage_costs_one_run(self, platform: Platform) -> None:
        """Killed and back after several intervals: one run makes up for all, the dead run is crashed, a pause stays."""
        loans = platform.deployment("retrain", "loans")
        schedule = loans["schedules"][0]["id"]
        platform.api("PATCH", f"/deployments/{loans['id']}/schedules/{schedule}", {"active": False})
        lost = platform.trigger("loans", SLOW)
        platform.process_of(lost)
        platform.kill()
        stopped = datetime.now(UTC)
        time.sleep(2.5 * INTERVAL_SECONDS)  # the start takes longer than one more
        platform.start()
        crashed = platform.wait_for(lost, "Crashed", seconds=CRASH_SECONDS)

        found: list[str] = []

        def is_over() -> bool:
            """Look at the runs that were due when the first of those that completed began: all must have ended."""
            missed = [run for run in platform.runs("retrain", "tiny") if due(run) > stopped]
            done = [run for run in missed if run["state_name"] == "Completed"]
            first = min(done, key=lambda run: str(run["start_time"]), default=None)
            if first is None:
                return False
            last = max(due(first), datetime.fromisoformat(first["start_time"]))
            found[:] = [run["state_name"] for run in missed if due(run) <= last]
            return {"Completed", "Cancelled", "Skipped"} >= set(found)

        wait(is_over, RUN_SECONDS, "no run made up", platform.explain)
        paused = platform.deployment("retrain", "loans")["schedules"]

        # The run's own process may hear of the end in time to say so itself.
        assert re.search("Its process was killed|aborted by a termination signal", crashed["state"]["message"])
        assert len(found) >= 3 and 1 == found.count("Completed"), f"{found}\n{platform.explain()}"
        assert [(schedule, False)] == [(one["id"], one["active"]) for one in paused]

    def test_a_change_of_the_file_is_taken_up(self, platform: Platform) -> None:
        """A file that changes changes its deployment; one that is broken leaves it as it is."""
        config = platform.folder / "tiny" / "evergreen.toml"
        text = config.read_text()
        config.write_text(text.replace("rounds = 20", "rounds = 19").replace(f'"{INTERVAL_SECONDS}s"', '"1h"'))

        def rounds() -> int:
            return int(platform.deployment("retrain", "tiny")["parameters"]["config"]["train"]["xgboost"]["rounds"])

        wait(lambda: rounds() == 19, RUN_SECONDS, "not taken up", platform.explain)
        config.write_text(text.replace("rounds = 20", "rounds = -1"))
        wait(
            lambda: "train.xgboost.rounds does not fit" in platform.explain(),
            RUN_SECONDS,
            "no complaint",
            platform.explain,
        )
        config.write_text(text.replace("rounds = 20", "rounds = 19").replace(f'"{INTERVAL_SECONDS}s"', '"1h"'))

        assert 19 == rounds()
        assert [3600.0] == [one["schedule"]["interval"] for one in platform.deployment("retrain", "tiny")["schedules"]]

    def test_a_person_changes_a_parameter_and_sees_the_run(self, platform: Platform, page: Page) -> None:
        """In the browser: a form is changed and sent; progress, verdict, report and MLflow's page are seen."""
        before = len(platform.runs("retrain", "loans"))
        page.goto(f"{platform.url}/deployments")
        page.locator(f"a[href$='/deployment/{platform.deployment('retrain', 'loans')['id']}']").first.click()
        page.get_by_role("button", name="Run", exact=True).click()
        page.get_by_text("Custom run").click()
        field = page.locator(".p-label", has=page.locator("span:text-is('Rounds (Optional)')")).last
        field.locator("input").fill("60")
        keep_picture(page, platform, "form")
        submit(page)
        wait(lambda: len(platform.runs("retrain", "loans")) > before, RUN_SECONDS, "no run", platform.explain)
        run_id = platform.runs("retrain", "loans")[-1]["id"]
        wait(
            lambda: "progress-loans" in platform.artifacts(run_id),
            RUN_SECONDS,
            "no bar",
            lambda: platform.story(run_id),
        )
        run = platform.wait_for(run_id, "Completed", "Failed", "Crashed")
        artifacts = platform.artifacts(run_id)

        assert ("Completed", "retrain loans") == (run["state_name"], run["name"]), platform.story(run_id)
        assert 60 == run["parameters"]["config"]["train"]["xgboost"]["rounds"]
        assert {"plan-loans", "progress-loans", "report-loans", "frontier-loans", "mlflow-loans"} <= artifacts.keys()
        assert (100.0, "done") == (artifacts["progress-loans"]["data"], artifacts["progress-loans"]["description"])

        page.goto(f"{platform.url}/runs/flow-run/{run_id}")
        page.get_by_text("For this run alone: train.xgboost.rounds = 60 (in the file: 2000).").wait_for()
        keep_picture(page, platform, "run")
        page.goto(f"{platform.url}/artifacts/artifact/{artifacts['report-loans']['id']}")
        page.get_by_role("heading", name="PROMOTE: loans 1").wait_for()
        page.wait_for_function(
            "[...document.images].length > 2 && [...document.images].every(i => i.naturalWidth > 100)"
        )
        keep_picture(page, platform, "report")
        link = str(page.get_by_role("link", name="The run in MLflow").get_attribute("href"))
        assert link.startswith(f"{platform.mlflow}/#/experiments/")
        page.goto(link)
        page.get_by_text("auc", exact=True).first.wait_for()
        keep_picture(page, platform, "mlflow")

    def test_the_model_is_served_where_the_file_says(self, platform: Platform) -> None:
        """The serving process that a file asks for answers from the first release on; models are shown side by side."""
        wait_for_version(f"http://127.0.0.1:{platform.ports['loans']}", "1")
        wait(lambda: bool(platform.runs("retrain", "tiny")), RUN_SECONDS, "no run", platform.explain)
        status = {model["model"]: model for model in platform.command("status", "--json").answer["models"]}

        assert [f"http://127.0.0.1:{platform.ports['loans']}"] == [
            server["url"] for server in status["loans"]["servers"]
        ]
        assert ("1", "1") == (status["loans"]["champion_version"], status["tiny"]["champion_version"])


class RunSuite(PlatformSuite):
    """What holds of processes, files and the storage; the database has no part in it, so one of the two will do."""

    def test_a_second_start_is_refused(self, platform: Platform) -> None:
        """A folder is served once: the second command says where the first is, and exits with 2."""
        second = platform.command("up", ".", "--port", str(free_port()))

        assert (2, "") == (second.code, second.stdout)
        assert re.search(rf"A folder is served once, but got \. with process=\d+ at {platform.url}\.", second.stderr)

    def test_a_killed_run_is_crashed_and_blocks_nothing(self, platform: Platform) -> None:
        """A run that is killed is seen as crashed within the stated time, and the next one runs."""
        killed = platform.trigger("tiny", SLOW)
        platform.process_of(killed).kill()
        run = platform.wait_for(killed, "Crashed", seconds=CRASH_SECONDS)
        after = platform.wait_for(platform.trigger("tiny"), "Completed", "Failed", "Crashed")

        assert ("CRASHED", "Completed") == (run["state_type"], after["state_name"]), platform.story(after["id"])

    def test_a_run_that_failed_goes_on_where_it_failed(self, platform: Platform, page: Page) -> None:
        """A run that fails in training says so, and started again in the browser it repeats nothing that was done."""
        run_id = platform.trigger(
            "loans", {"learning_rate": 0.01, "rounds": 2500, "early_stopping_rounds": 2500}, checkpoint_rounds=2500
        )
        process = platform.process_of(run_id)

        def is_training() -> bool:
            bar = platform.artifacts(run_id).get("progress-loans")
            return bar is not None and str(bar["description"]).startswith("train: ")

        wait(is_training, RUN_SECONDS, "no training", lambda: platform.story(run_id))
        # A worker that dies is replaced. Only those that die again and again, before anything was saved, end a run.
        deadline = time.monotonic() + RUN_SECONDS
        while platform.run(run_id)["state_name"] == "Running" and time.monotonic() < deadline:
            kill_workers(process, older_than_seconds=3)
            time.sleep(0.5)
        failed = platform.wait_for(run_id, "Failed")
        page.goto(f"{platform.url}/runs/flow-run/{run_id}")
        page.get_by_text("Failed", exact=True).first.wait_for()
        page.get_by_role("button", name="Retry").click()
        page.get_by_role("dialog").get_by_role("button", name="Retry").click()
        wait(lambda: platform.run(run_id)["run_count"] == 2, RUN_SECONDS, "no retry", lambda: platform.story(run_id))
        again = platform.wait_for(run_id, "Completed", "Failed", "Crashed")
        stages = dict(platform.stages(run_id))
        keep_picture(page, platform, "retried")

        # Which of the two comes first depends on how fast nannies start workers anew.
        words = ("A training must get from one checkpoint to the next", "A gang needs a worker for each of its members")
        assert any(word in failed["state"]["message"] for word in words)
        assert "Completed" == again["state_name"], platform.story(run_id)
        assert {"Cached"} == {stages[name] for name in ("profile", "encode", "split", "sample")}
        assert "Completed" == stages["train"]


class EndSuite(PlatformSuite):
    """What comes last."""

    def test_a_command_by_hand_is_seen_in_the_same_place(self, platform: Platform) -> None:
        """`evergreen retrain` beside a running platform uses its servers and its records."""
        ended = platform.command("retrain", platform.folder / "tiny" / "evergreen.toml", "--json")
        by_hand = platform.api("POST", "/flow_runs/filter", {"flow_runs": {"deployment_id": {"is_null_": True}}})

        assert ended.answer["artifacts"]["mlflow_run"].startswith(f"{platform.mlflow}/#/experiments/")
        assert [("retrain tiny", "Completed")] == [(run["name"], run["state_name"]) for run in by_hand]

    def test_down_ends_everything(self, platform: Platform) -> None:
        """`evergreen down` ends every process, and says so; there is nothing to end a second time."""
        assert platform.process is not None
        children = psutil.Process(platform.process.pid).children(recursive=True)
        first, second = platform.command("down"), platform.command("down")
        platform.process.wait(60)

        assert (0, f"Stopped: {platform.url} and {platform.mlflow}.\n") == (first.code, first.stdout)
        assert [] == [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
        assert (2, True) == (second.code, "There must be an evergreen up of ., but got none running." in second.stderr)
