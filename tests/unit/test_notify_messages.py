"""The section [notify], the events and the messages; flows/notify.py has its tests beside a real Prefect server."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from infra.errors import InputError
from tasks._notify import (
    EVENTS,
    Channel,
    Condition,
    News,
    NotifyConfig,
    Occasion,
    channels_of,
    condition_of,
    drift_news,
    mail_url,
    message_of,
    shortened,
    verdict_news,
    webhook_payload,
)

SLACK = "https://hooks.slack.com/services/T0/B0/secret"
UI = "http://127.0.0.1:4200"


def verdict(**changes: Any) -> News:
    """Return the event of a promotion, or of something else."""
    facts: dict[str, Any] = {
        "model": "loan-default",
        "version": "7",
        "decision": "PROMOTE",
        "reasons": ["Better: auc 0.8105 against 0.8076."],
        "champion_before": "6",
        "champion_after": "7",
        "metric": "auc",
        "score": 0.81051234,
        "champion_score": 0.8076,
        "report": "/data/reports/loan-default/r.html",
        "mlflow_run": "http://127.0.0.1:5000/#/experiments/1/runs/r",
    }
    return verdict_news(**{**facts, **changes})


def rendered(template: str, **known: Any) -> str:
    """Fill a template in as Prefect's server does."""
    from prefect.server.utilities.user_templates import render_user_template_sync, validate_user_template

    validate_user_template(template)
    return render_user_template_sync(template, known)


def said(occasion: Occasion, news: News, **known: Any) -> tuple[str, str]:
    """Return subject and body of the message about an event."""
    message = message_of(occasion, news.model, UI)
    event = SimpleNamespace(event=news.event, payload=news.payload, occurred=datetime(2026, 11, 21, 12, tzinfo=UTC))
    return rendered(message.subject, event=event, **known), rendered(message.body, event=event, **known)


def test_nobody_is_told_by_default() -> None:
    """Without a channel there is none, and four occasions are told once there is one."""
    config = NotifyConfig()

    assert ((), ["promote", "reject", "drift", "failure"]) == (channels_of(config, {}), config.on)


def test_secrets_come_from_the_environment() -> None:
    """Addresses are read from the variables that the file names, and are not shown."""
    config = NotifyConfig(slack="env:SLACK", webhook="env:HOOK", email=["you@example.com"], email_from="me@example.com")
    environment = {"SLACK": f"{SLACK}\n", "HOOK": "https://example.com/?key=1", "SMTP_URL": "smtp://mail.example.com"}
    found = channels_of(config, environment)

    assert (
        Channel("slack", SLACK),
        Channel("webhook", "https://example.com/?key=1"),
        Channel(
            "email",
            "mailto://mail.example.com:25/?smtp=mail.example.com&mode=insecure&from=me%40example.com"
            "&name=Evergreen&to=you%40example.com&format=text",
        ),
    ) == found
    assert "Channel(kind='slack')" == repr(found[0])


def test_a_webhook_may_stand_in_the_file() -> None:
    """An address without a secret needs no variable, and may be on this machine."""
    assert (Channel("webhook", "http://127.0.0.1:9/hook"),) == channels_of(
        NotifyConfig(webhook="http://127.0.0.1:9/hook"), {}
    )


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"slack": SLACK}, "env: and the name of the variable that holds the address, which is a secret"),
        ({"email_server": "smtp://mail"}, "env: and the name of the variable"),
        ({"email_server": ""}, "env: and the name of the variable"),
        ({"webhook": "https://me:secret@example.com"}, "without a password, or env:NAME"),
        ({"webhook": "example.com/hook"}, "an address such as https://example.com/hook"),
        ({"webhook": "https://example.com:port/"}, "an address such as https://example.com/hook"),
        ({"email": ["you@example.com"]}, "email needs email_from beside it"),
        ({"email": ["you@example"], "email_from": "me@example.com"}, "mail addresses such as team@example.com"),
        ({"email_from": "Me <me@example.com>"}, "mail addresses such as team@example.com"),
        ({"blocks": ["team"]}, "the type and the name of a block, such as ms-teams-webhook/my-team"),
        ({"on": ["promotion"]}, "Input should be 'promote', 'reject', 'hold', 'drift' or 'failure'"),
    ],
)
def test_a_wrong_value_is_refused(values: dict[str, Any], complaint: str) -> None:
    """The file is checked before anything starts, secrets in it included."""
    with pytest.raises(ValidationError, match=complaint):
        NotifyConfig(**values)


@pytest.mark.parametrize(
    ("values", "environment", "complaint"),
    [
        (
            {"slack": "env:SLACK"},
            {},
            r"notify.slack names a variable of the environment, but got SLACK=nothing. Set SLACK where evergreen up",
        ),
        (
            {"email": ["you@example.com"], "email_from": "me@example.com"},
            {"SMTP_URL": " "},
            r"notify.email_server names a variable of the environment, but got SMTP_URL=nothing. Set SMTP_URL",
        ),
        (
            {"slack": "env:SLACK"},
            {"SLACK": "https://chat.example.com/hooks/secret"},
            r"incoming webhook, https://hooks.slack.com/services/..., but got SLACK='https://chat.example.com'... Copy",
        ),
        (
            {"webhook": "env:HOOK"},
            {"HOOK": "ftp://example.com/secret"},
            r"notify.webhook is an address that begins with https.*HOOK='ftp://example.com'... Correct the variable.",
        ),
        (
            {"email": ["you@example.com"], "email_from": "me@example.com"},
            {"SMTP_URL": "smtps://me@mail.example.com"},
            r"is a mail server such as smtps.*but got SMTP_URL='smtps://mail.example.com'... Correct the variable.",
        ),
    ],
)
def test_a_wrong_variable_is_named(values: dict[str, Any], environment: dict[str, str], complaint: str) -> None:
    """A variable that is missing or holds something else is named, with what to do."""
    with pytest.raises(InputError, match=complaint):
        channels_of(NotifyConfig(**values), environment)


@pytest.mark.parametrize(
    "server",
    [
        "smtps://me:secret@host:port",
        "imap://me:secret@host",
        "mail.example.com",
        "smtp://",
        "smtp://host/secret",
        "smtps://:secret@host",
    ],
)
def test_no_secret_is_in_a_complaint(server: str) -> None:
    """What is said of a wrong mail server leaves its login out."""
    with pytest.raises(InputError, match=r"is a mail server such as") as raised:
        mail_url(server, "env:SMTP_URL", "me@example.com", ["you@example.com"])

    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("server", "expected"),
    [
        ("smtp://10.0.0.5", ("10.0.0.5", 25, "insecure", None, None)),
        ("smtp+starttls://me:p%40ss@mail.example.com", ("mail.example.com", 587, "starttls", "me", "p@ss")),
        ("smtps://me%40gmail.com:a/b+c:d@smtp.gmail.com", ("smtp.gmail.com", 465, "ssl", "me@gmail.com", "a/b+c:d")),
        (
            "smtps://me@gmail.com:p&ss w=rd#%@smtp.gmail.com:466",
            ("smtp.gmail.com", 466, "ssl", "me@gmail.com", "p&ss w=rd#%"),
        ),
    ],
)
def test_apprise_reads_the_mail_server_as_it_was_meant(server: str, expected: tuple[Any, ...]) -> None:
    """Host, port, encryption, login, sender and recipients arrive in Apprise unchanged, special characters too."""
    from apprise import Apprise

    mailer: Any = Apprise.instantiate(mail_url(server, "env:X", "me+ml@example.com", ["a.b+c@x.org", "d@y.co.uk"]))

    assert expected == (mailer.smtp_host, mailer.port, mailer.secure_mode, mailer.user, mailer.password)
    assert ("Evergreen", "me+ml@example.com") == tuple(mailer.from_addr)
    assert ["a.b+c@x.org", "d@y.co.uk"] == [address for _, address in mailer.targets]


def test_every_occasion_has_its_events() -> None:
    """Our events are about the model; a run's failure is found by the tag of its deployment."""
    own = Condition(frozenset({"evergreen.model.held"}), {"prefect.resource.id": "evergreen.model.a"}, {})
    failed = Condition(
        frozenset({"prefect.flow-run.Failed", "prefect.flow-run.Crashed", "prefect.flow-run.TimedOut"}),
        {"prefect.resource.id": "prefect.flow-run.*"},
        {"prefect.resource.role": "tag", "prefect.resource.id": "prefect.tag.model:a"},
    )

    assert (own, failed) == (condition_of("hold", "a"), condition_of("failure", "a"))


def test_a_verdict_is_an_event() -> None:
    """A promotion carries the facts that a reader or a program wants."""
    expected = News(
        "evergreen.model.promoted",
        "loan-default",
        {
            "model": "loan-default",
            "version": "7",
            "champion_before": "6",
            "champion": "7",
            "decision": "PROMOTE",
            "metric": "auc",
            "score": 0.81051234,
            "champion_score": 0.8076,
            "reasons": ["Better: auc 0.8105 against 0.8076."],
            "report": "/data/reports/loan-default/r.html",
            "mlflow_run": "http://127.0.0.1:5000/#/experiments/1/runs/r",
        },
    )

    assert expected == verdict()
    assert "evergreen.model.loan-default" == expected.resource["prefect.resource.id"]


@pytest.mark.parametrize(
    ("decision", "champion_after", "event"),
    [
        ("HOLD", "6", "evergreen.model.held"),
        ("REJECT", "6", "evergreen.model.rejected"),
        ("PROMOTE", "6", "evergreen.model.held"),
    ],
)
def test_only_what_went_into_production_is_promoted(decision: str, champion_after: str, event: str) -> None:
    """With promotion off, a verdict that would promote is told as held."""
    assert event == verdict(decision=decision, champion_after=champion_after).event


def test_promotion_that_is_off_is_a_reason() -> None:
    """A version that is held only because promotion is off says so."""
    assert "Not promoted: promote.enabled is off." == verdict(champion_after="6").payload["reasons"][-1]


def test_long_reasons_are_cut() -> None:
    """A message holds ten reasons of 500 characters, and says how many there are more."""
    found = shortened(["x" * 600] * 11)

    assert (11, 503, "... and 1 more.") == (len(found), len(found[0]), found[-1])


def test_a_promotion_in_words() -> None:
    """The message names the version, the one before, why, and where to read more."""
    run = SimpleNamespace(id="f1")

    assert (
        "loan-default: version 7 is in production",
        "It replaces version 6.\n"
        "Better: auc 0.8105 against 0.8076.\n"
        "auc: 0.81051, version 6: 0.8076\n\n"
        "Report: /data/reports/loan-default/r.html\n"
        "MLflow: http://127.0.0.1:5000/#/experiments/1/runs/r\n"
        "Run: http://127.0.0.1:4200/runs/flow-run/f1",
    ) == said("promote", verdict(), flow_run=run)


def test_a_first_version_in_words() -> None:
    """Without a champion before, without links and without a flow run, the message has no gaps."""
    news = verdict(champion_before=None, champion_score=None, report="", mlflow_run="", score=529.43)

    assert "It is the first.\nBetter: auc 0.8105 against 0.8076.\nauc: 529.43\n\n" == said("promote", news)[1]


@pytest.mark.parametrize(
    ("occasion", "decision", "champion", "subject", "first"),
    [
        ("reject", "REJECT", "6", "version 7 is rejected", "Version 6 stays in production."),
        ("hold", "HOLD", "6", "version 7 is held", "Version 6 stays in production."),
        ("reject", "REJECT", None, "version 7 is rejected", "Nothing is in production."),
    ],
)
def test_other_verdicts_in_words(
    occasion: Occasion, decision: str, champion: str | None, subject: str, first: str
) -> None:
    """What was not promoted is told with what stays in production."""
    news = verdict(decision=decision, champion_before=champion, champion_after=champion, score=None)
    found = said(occasion, news)

    assert (f"loan-default: {subject}", [first, "Better: auc 0.8105 against 0.8076.", ""]) == (
        found[0],
        found[1].splitlines()[:3],
    )


def test_drift_in_words() -> None:
    """Drift names the version and what has changed."""
    news = drift_news("loan-default", "7", ["income: PSI 0.31, above 0.2."], {"income": 0.31}, "")

    assert (
        "loan-default: the data has drifted",
        "The data differs from what version 7 was trained on.\nincome: PSI 0.31, above 0.2.\n\n",
    ) == said("drift", news)


@pytest.mark.parametrize(
    ("state", "message", "subject", "first"),
    [
        ("Failed", "ValueError: no rows", "retrain failed", "ValueError: no rows"),
        ("Crashed", "Its process was killed.", "retrain crashed", "Its process was killed."),
        ("TimedOut", None, "retrain took too long", "Prefect knows no reason."),
    ],
)
def test_a_failure_in_words(state: str, message: str | None, subject: str, first: str) -> None:
    """A failure names the flow, says why, and what to do."""
    news = News(f"prefect.flow-run.{state}", "loan-default", {})
    run = SimpleNamespace(id="f1", name="retrain loan-default", state=SimpleNamespace(name=state, message=message))

    assert (
        f"loan-default: {subject}",
        f"{first}\n\nStarted again from its page, the run goes on from the stage that failed.\n"
        "Run: http://127.0.0.1:4200/runs/flow-run/f1",
    ) == said("failure", news, flow_run=run, flow=SimpleNamespace(name="retrain"))


@pytest.mark.parametrize("occasion", list(EVENTS))
def test_a_webhook_gets_json(occasion: Occasion) -> None:
    """The payload is valid JSON whatever the texts hold, with the message and the facts."""
    news = verdict(reasons=['A "quoted" <tag> & {{ braces }}\nand a line'])
    news = drift_news("loan-default", "7", ["x"], {"x": 1.0}, "") if occasion == "drift" else news
    run = SimpleNamespace(id="f1", name="r", state=SimpleNamespace(name="Failed", message='"why"'))
    event = SimpleNamespace(
        event=EVENTS[occasion][0], payload=news.payload, occurred=datetime(2026, 11, 21, 12, tzinfo=UTC)
    )
    flow = SimpleNamespace(name="retrain")
    message = message_of(occasion, "loan-default", UI)
    text = rendered(webhook_payload(occasion, "loan-default", message), event=event, flow_run=run, flow=flow)
    found = json.loads(text)
    failure = {"flow": "retrain", "run": "r", "run_id": "f1", "state": "Failed", "message": '"why"'}
    subject = rendered(message.subject, event=event, flow_run=run, flow=flow)

    assert {
        "event": EVENTS[occasion][0],
        "time": "2026-11-21T12:00:00+00:00",
        "occasion": occasion,
        "model": "loan-default",
        "subject": subject,
        "text": f"{subject}\n{rendered(message.body, event=event, flow_run=run, flow=flow)}",
        "details": failure if occasion == "failure" else news.payload,
    } == found
