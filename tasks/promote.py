"""Promote: the challenger becomes the champion, one at a time, with a row in the ledger."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from infra.errors import RunError
from infra.ledger import Ledger, Row, StaleChampionError
from infra.tracking import Tracking
from tasks._story import Judged
from tasks.stage import Run, stage


@stage()
def promote(run: Run, judged: Judged) -> Row | None:
    """Write the promotion into the ledger, then move the aliases.

    The ledger's next row is the fence: of two promotions against the same champion one is written.

    Raises:
        StaleChampionError: the champion is no longer the one that was decided against.
    """
    row = None
    try:
        row = run.ledger.append(
            "promote",
            version=judged.version.version,
            expected=judged.champion_version,
            run_id=run.run_id,
            reason=judged.verdict.reasons[0],
            details=_details(judged),
        )
    except StaleChampionError as error:
        # An earlier attempt may have written the row and died before the aliases.
        if error.actual != judged.version.version:
            raise
    follow_ledger(run.ledger, run.tracking, run.model)
    return row


def record(run: Run, judged: Judged) -> None:
    """Write a verdict that promotes nothing into the ledger."""
    run.ledger.append(
        "verdict",
        version=judged.version.version,
        expected=judged.champion_version,
        run_id=run.run_id,
        reason=judged.verdict.reasons[0],
        details=_details(judged),
    )


def _details(judged: Judged) -> dict[str, Any]:
    return {
        "decision": judged.verdict.decision,
        "reasons": list(judged.verdict.reasons),
        "metrics": judged.challenger.metrics,
    }


@contextmanager
def undone_if_it_fails(run: Run, judged: Judged) -> Iterator[None]:
    """Bring the champion back if what follows its replacement fails."""
    try:
        yield
    except RunError as error:
        if judged.champion_version is not None:
            run.ledger.append(
                "rollback",
                version=judged.champion_version,
                expected=judged.version.version,
                run_id=run.run_id,
                reason=f"Version {judged.version.version} could not be deployed.",
                details={"error": str(error)},
            )
            follow_ledger(run.ledger, run.tracking, run.model)
        raise


def follow_ledger(ledger: Ledger, tracking: Tracking, model: str) -> None:
    """Point the aliases `champion` and `previous` to what the ledger says.

    The ledger is looked at again afterwards: of two processes that do this at once, the last one sees the last row.
    """
    while True:
        champion, previous = ledger.champion(), ledger.previous()
        if previous is not None:
            tracking.set_alias(model, "previous", previous)
        if champion is not None:
            tracking.set_alias(model, "champion", champion)
        if ledger.champion() == champion:
            return
