"""Who is told what, and in which words: the section [notify], the events of a model, and the messages about them.

Everything here is pure; flows/notify.py makes Prefect's blocks and automations of it. The messages are templates that
Prefect's server fills in when an event arrives. Secrets stand in variables of the environment: what the file says ends
up in Prefect's and MLflow's databases as plain text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from string import Template
from typing import Any, Literal
from urllib.parse import quote, unquote, urlencode, urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from infra.errors import InputError

Occasion = Literal["promote", "reject", "hold", "drift", "failure"]
Kind = Literal["slack", "webhook", "email"]

EVENTS: Mapping[Occasion, tuple[str, ...]] = {
    "promote": ("evergreen.model.promoted",),
    "reject": ("evergreen.model.rejected",),
    "hold": ("evergreen.model.held",),
    "drift": ("evergreen.drift.detected",),
    "failure": ("prefect.flow-run.Failed", "prefect.flow-run.Crashed", "prefect.flow-run.TimedOut"),
}
"""What is heard of: our own events, and Prefect's of a run that ended badly."""
KINDS: tuple[Kind, ...] = ("slack", "webhook", "email")

MAX_REASONS = 10
MAX_REASON_CHARS = 500
VARIABLE = re.compile(r"env:[A-Za-z_][A-Za-z0-9_]*")
BLOCK = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*/[a-z0-9]+(-[a-z0-9]+)*")
MAIL_ADDRESS = re.compile(r"[A-Za-z0-9_%+-]+(\.[A-Za-z0-9_%+-]+)*@([A-Za-z0-9-]+\.)+[A-Za-z]{2,}")
SLACK_ADDRESS = re.compile(r"https://hooks\.slack(-gov)?\.com/services/[A-Z0-9]+/[A-Z0-9]+/[A-Za-z0-9]+/?")
MAIL_MODES = {"smtps": "ssl", "smtp+starttls": "starttls", "smtp": "insecure"}
"""Encrypted from the first byte, encrypted after a greeting, not at all."""


class NotifyConfig(BaseModel):
    """Who is told of what happens to this model. `evergreen up` applies it; it is for all runs, not for one."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    on: list[Occasion] = Field(default=["promote", "reject", "drift", "failure"])
    """What is told: promote, a version went into production; reject, one was worse; hold, one was not proven better;
    drift, the data has changed; failure, a run failed, crashed or took too long."""
    slack: str | None = Field(default=None)
    """Variable that holds the address of a Slack incoming webhook, such as env:SLACK_WEBHOOK_URL."""
    webhook: str | None = Field(default=None)
    """Address that gets a JSON object by POST; env:NAME where the address is a secret."""
    email: list[str] = Field(default=[])
    """Mail addresses that get a message each."""
    email_from: str | None = Field(default=None)
    """Mail address of the sender."""
    email_server: str = Field(default="env:SMTP_URL")
    """Variable that holds the mail server: smtps://user:password@host, smtp+starttls://... or smtp://host:25."""
    blocks: list[str] = Field(default=[])
    """Notification blocks that exist in Prefect, as type/name: ms-teams-webhook/my-team."""

    @field_validator("slack")
    @classmethod
    def _check_slack(cls, value: str | None) -> str | None:
        return _variable(value) if value else None

    @field_validator("email_server")
    @classmethod
    def _check_email_server(cls, value: str) -> str:
        return _variable(value)

    @field_validator("webhook")
    @classmethod
    def _check_webhook(cls, value: str | None) -> str | None:
        if not value or VARIABLE.fullmatch(value):
            return value or None
        if not _is_web_address(value) or urlsplit(value).username is not None:
            raise ValueError("an address such as https://example.com/hook without a password, or env:NAME")
        return value

    @field_validator("email")
    @classmethod
    def _check_email(cls, values: list[str]) -> list[str]:
        return [_mail_address(value) for value in values]

    @field_validator("email_from")
    @classmethod
    def _check_email_from(cls, value: str | None) -> str | None:
        return _mail_address(value) if value else None

    @field_validator("blocks")
    @classmethod
    def _check_blocks(cls, values: list[str]) -> list[str]:
        for value in values:
            if not BLOCK.fullmatch(value):
                raise ValueError("the type and the name of a block, such as ms-teams-webhook/my-team")
        return values

    @model_validator(mode="after")
    def _check_sender(self) -> NotifyConfig:
        if self.email and not self.email_from:
            raise ValueError("email needs email_from beside it, the address of the sender")
        return self


def _variable(value: str) -> str:
    if not VARIABLE.fullmatch(value):
        raise ValueError("env: and the name of the variable that holds the address, which is a secret")
    return value


def _is_web_address(value: str) -> bool:
    try:
        parts = urlsplit(value)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        return False


def _mail_address(value: str) -> str:
    if not MAIL_ADDRESS.fullmatch(value):
        raise ValueError("mail addresses such as team@example.com")
    return value


@dataclass(frozen=True)
class Channel:
    """A way for messages to go."""

    kind: Kind
    address: str = field(repr=False)
    """With the secrets in it; of mail in the form that Apprise reads."""


def channels_of(config: NotifyConfig, environment: Mapping[str, str]) -> tuple[Channel, ...]:
    """Return where messages go, with the secrets from the environment.

    Raises:
        InputError: a variable is not set, or does not hold what it should; the message shows no secret.
    """
    found = []
    if config.slack:
        found.append(Channel("slack", slack_address(config.slack, environment)))
    if config.webhook:
        found.append(Channel("webhook", webhook_address(config.webhook, environment)))
    if config.email:
        assert config.email_from is not None, "the configuration has checked it"
        server = variable_value("notify.email_server", config.email_server, environment)
        found.append(Channel("email", mail_url(server, config.email_server, config.email_from, config.email)))
    return tuple(found)


def variable_value(key: str, reference: str, environment: Mapping[str, str]) -> str:
    """Return what a variable holds that a key names as env:NAME."""
    name = reference.removeprefix("env:")
    value = environment.get(name, "").strip()
    if not value:
        raise InputError(
            f"{key} names a variable of the environment, but got {name}=nothing. "
            f"Set {name} where evergreen up starts, or remove the key."
        )
    return value


def slack_address(reference: str, environment: Mapping[str, str]) -> str:
    """Return the address of a Slack incoming webhook."""
    address = variable_value("notify.slack", reference, environment)
    if not SLACK_ADDRESS.fullmatch(address):
        raise InputError(
            "notify.slack is the address of an incoming webhook, https://hooks.slack.com/services/..., but got "
            f"{reference.removeprefix('env:')}={_host(address)!r}... Copy it from Slack; for others use notify.webhook."
        )
    return address


def webhook_address(reference: str, environment: Mapping[str, str]) -> str:
    """Return the address that gets the JSON objects."""
    if not reference.startswith("env:"):
        return reference
    address = variable_value("notify.webhook", reference, environment)
    if not _is_web_address(address):
        raise InputError(
            "notify.webhook is an address that begins with https:// or http://, but got "
            f"{reference.removeprefix('env:')}={_host(address)!r}... Correct the variable."
        )
    return address


def mail_url(server: str, reference: str, sender: str, recipients: Sequence[str]) -> str:
    """Return a mail server and its letters' addresses in the form that Apprise reads.

    >>> mail_url("smtps://me:a/b@mail.example.com", "env:SMTP_URL", "me@example.com", ["you@example.com"])
    'mailtos://me:a%2Fb@mail.example.com:465/?smtp=mail.example.com&mode=ssl&from=me%40example.com&...'
    """
    head, _, rest = server.partition("://")
    login, _, place = rest.rpartition("@")  # a password may hold a slash
    user, has_password, password = login.partition(":")
    host, port = _place(place)
    if head not in MAIL_MODES or not host or bool(user) != bool(has_password and password):
        raise InputError(
            "notify.email_server is a mail server such as smtps://user:password@host, smtp+starttls://... or "
            f"smtp://host:25, but got {reference.removeprefix('env:')}={head + '://' + host!r}... Correct the variable."
        )
    mode = MAIL_MODES[head]
    number = port or {"ssl": 465, "starttls": 587, "insecure": 25}[mode]
    credentials = f"{quote(unquote(user), safe='')}:{quote(unquote(password), safe='')}@" if user else ""
    options = {
        "smtp": host,
        "mode": mode,
        "from": sender,
        "name": "Evergreen",
        "to": ",".join(recipients),
        "format": "text",
    }
    scheme = "mailto" if mode == "insecure" else "mailtos"
    return f"{scheme}://{credentials}{host}:{number}/?{urlencode(options, quote_via=quote)}"


def _place(place: str) -> tuple[str, int | None]:
    try:
        parts = urlsplit(f"//{place}")
        return (parts.hostname or "", parts.port) if parts.path in ("", "/") else ("", None)
    except ValueError:
        return "", None


def _host(address: str) -> str:
    """Return what may be shown of an address that may hold secrets."""
    try:
        parts = urlsplit(address)
        return f"{parts.scheme}://{parts.hostname}" if parts.hostname else ""
    except ValueError:
        return ""


@dataclass(frozen=True)
class News:
    """An event of ours."""

    event: str
    model: str
    payload: dict[str, Any]

    @property
    def resource(self) -> dict[str, str]:
        """Return what the event is about, as Prefect names it."""
        return {"prefect.resource.id": resource_id(self.model), "prefect.resource.name": self.model}


def resource_id(model: str) -> str:
    """Return the name that events give to a model."""
    return f"evergreen.model.{model}"


def verdict_news(
    model: str,
    version: str,
    decision: Literal["PROMOTE", "HOLD", "REJECT"],
    reasons: Sequence[str],
    *,
    champion_before: str | None,
    champion_after: str | None,
    metric: str,
    score: float | None,
    champion_score: float | None,
    report: str,
    mlflow_run: str,
) -> News:
    """Return the event of a verdict. One that would promote where promotion is off is held."""
    occasion: Occasion = "reject" if decision == "REJECT" else "hold"
    if decision == "PROMOTE" and champion_after == version:
        occasion = "promote"
    elif decision == "PROMOTE":
        reasons = [*reasons, "Not promoted: promote.enabled is off."]
    payload = {
        "model": model,
        "version": version,
        "champion_before": champion_before,
        "champion": champion_after,
        "decision": decision,
        "metric": metric,
        "score": score,
        "champion_score": champion_score,
        "reasons": shortened(reasons),
        "report": report,
        "mlflow_run": mlflow_run,
    }
    return News(EVENTS[occasion][0], model, payload)


def drift_news(model: str, version: str, reasons: Sequence[str], values: Mapping[str, float], report: str) -> News:
    """Return the event of data that have changed since a version was trained; `values` by column or statistic."""
    payload = {
        "model": model,
        "version": version,
        "reasons": shortened(reasons),
        "values": dict(values),
        "report": report,
    }
    return News(EVENTS["drift"][0], model, payload)


def shortened(reasons: Sequence[str]) -> list[str]:
    """Return reasons that fit into a message.

    >>> shortened(["a"] * 12)[-2:]
    ['a', '... and 2 more.']
    """
    shown = [
        reason if len(reason) <= MAX_REASON_CHARS else f"{reason[:MAX_REASON_CHARS]}..."
        for reason in reasons[:MAX_REASONS]
    ]
    return [*shown, f"... and {len(reasons) - MAX_REASONS} more."] if len(reasons) > MAX_REASONS else shown


@dataclass(frozen=True)
class Condition:
    """Which events make a message: by name, by what they are about, and by what is related to that."""

    events: frozenset[str]
    match: dict[str, str | list[str]]
    match_related: dict[str, str | list[str]]


def condition_of(occasion: Occasion, model: str) -> Condition:
    """Return which events are of this model. A run of Prefect's has the tags of its deployment."""
    if occasion == "failure":
        return Condition(
            frozenset(EVENTS[occasion]),
            {"prefect.resource.id": "prefect.flow-run.*"},
            {"prefect.resource.role": "tag", "prefect.resource.id": f"prefect.tag.model:{model}"},
        )
    return Condition(frozenset(EVENTS[occasion]), {"prefect.resource.id": resource_id(model)}, {})


@dataclass(frozen=True)
class Message:
    """A text with gaps in Jinja, which Prefect fills in from the event and its flow run."""

    subject: str
    body: str


_REASONS = "{% for reason in event.payload.reasons %}{{ reason }}\n{% endfor %}"
_SCORES = (
    "{% if event.payload.score is not none %}"
    "{{ event.payload.metric }}: {{ '%.5g' | format(event.payload.score) }}"
    "{% if event.payload.champion_score is not none %}, version {{ event.payload.champion_before }}: "
    "{{ '%.5g' | format(event.payload.champion_score) }}{% endif %}\n{% endif %}"
)
_STAYS = (
    "{% if event.payload.champion %}Version {{ event.payload.champion }} stays in production."
    "{% else %}Nothing is in production.{% endif %}\n"
)
_PAGES = (
    "{% if event.payload.report %}Report: {{ event.payload.report }}\n{% endif %}"
    "{% if event.payload.mlflow_run %}MLflow: {{ event.payload.mlflow_run }}\n{% endif %}"
)
_RUN = "{% if flow_run %}Run: $ui/runs/flow-run/{{ flow_run.id }}{% endif %}"

_MESSAGES: Mapping[Occasion, Message] = {
    "promote": Message(
        "$model: version {{ event.payload.version }} is in production",
        "{% if event.payload.champion_before %}It replaces version {{ event.payload.champion_before }}."
        f"{{% else %}}It is the first.{{% endif %}}\n{_REASONS}{_SCORES}\n{_PAGES}{_RUN}",
    ),
    "reject": Message(
        "$model: version {{ event.payload.version }} is rejected",
        f"{_STAYS}{_REASONS}{_SCORES}\n{_PAGES}{_RUN}",
    ),
    "hold": Message(
        "$model: version {{ event.payload.version }} is held",
        f"{_STAYS}{_REASONS}{_SCORES}\n{_PAGES}{_RUN}",
    ),
    "drift": Message(
        "$model: the data has drifted",
        "The data differs from what version {{ event.payload.version }} was trained on.\n"
        f"{_REASONS}\n{_PAGES}{_RUN}",
    ),
    "failure": Message(
        "$model: {{ flow.name }} {{ {'Crashed': 'crashed', 'TimedOut': 'took too long'}"
        ".get(flow_run.state.name, 'failed') }}",
        "{{ (flow_run.state.message or 'Prefect knows no reason.') | truncate(1500) }}\n\n"
        "Started again from its page, the run goes on from the stage that failed.\n" + _RUN,
    ),
}


def message_of(occasion: Occasion, model: str, ui_url: str) -> Message:
    """Return what is said; `ui_url` is where people see Prefect's pages."""
    template, known = _MESSAGES[occasion], {"model": model, "ui": ui_url.rstrip("/")}
    return Message(Template(template.subject).substitute(known), Template(template.body).substitute(known))


def webhook_payload(occasion: Occasion, model: str, message: Message) -> str:
    """Return the template of the JSON object that a webhook gets: the text, and the facts for machines.

    Chat programs that understand Slack's incoming webhooks show its `text`.
    """
    facts = "event.payload"
    if occasion == "failure":
        facts = (
            "{'flow': flow.name, 'run': flow_run.name, 'run_id': flow_run.id | string, "
            "'state': flow_run.state.name, 'message': flow_run.state.message}"
        )
    return (
        f"{{% set subject %}}{message.subject}{{% endset %}}{{% set body %}}{message.body}{{% endset %}}"
        '{"event": {{ event.event | tojson }}, "time": {{ event.occurred.isoformat() | tojson }}, '
        f'"occasion": "{occasion}", "model": "{model}", "subject": {{{{ subject | tojson }}}}, '
        '"text": {{ (subject ~ "\\n" ~ body) | tojson }}, '
        f'"details": {{{{ {facts} | tojson }}}}}}'
    )
