"""Notifications with a real Prefect server, and receivers in this process: a webhook, a mail server, and Slack."""

from __future__ import annotations

import asyncio
import email
import json
import socketserver
import ssl
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.blocks.system import Secret
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.objects import State
from prefect.events.schemas.automations import Automation
from prefect.settings import (
    PREFECT_API_AUTH_STRING,
    PREFECT_API_URL,
    PREFECT_HOME,
    PREFECT_UI_URL,
    temporary_settings,
)
from prefect.states import Crashed, Failed

from flows.notify import apply_notifications, emit, remove_notifications
from infra import prefect_server
from infra.errors import InputError
from infra.processes import free_port
from tasks._notify import News, NotifyConfig, drift_news

ROOT = Path(__file__).parents[2]
DELIVERY_SECONDS = 30.0
PASSWORD = "me:secret"
SLACK_PATH = "/services/T0/B0/secret"
T = TypeVar("T")


@dataclass
class Inbox:
    """What has arrived at a receiver."""

    arrived: list[Any] = field(default_factory=list)

    def take(self, count: int) -> list[Any]:
        """Wait for so many, and return all that are there; a test ends its events with one that it waits for."""
        deadline = time.monotonic() + DELIVERY_SECONDS
        while len(self.arrived) < count and time.monotonic() < deadline:
            time.sleep(0.05)
        taken, self.arrived = self.arrived, []
        return taken


@dataclass(frozen=True)
class Receivers:
    """Where messages arrive, and the addresses of these places."""

    hooks: Inbox
    mails: Inbox
    slack: Inbox
    hook_url: str
    environment: dict[str, str]
    """What the file's variables hold."""


class HookHandler(BaseHTTPRequestHandler):
    """Keep the JSON object of a POST."""

    inbox: Inbox

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.inbox.arrived.append((self.path, self.headers["Content-Type"], json.loads(body)))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


class MailHandler(socketserver.StreamRequestHandler):
    """Speak as much SMTP as it takes to keep a letter."""

    inbox: Inbox

    def say(self, line: str) -> None:
        self.wfile.write(f"{line}\r\n".encode())

    def handle(self) -> None:
        self.say("220 here")
        recipients = []
        while line := self.rfile.readline().decode().strip():
            command = line.upper()
            if command.startswith("RCPT TO:"):
                recipients.append(line[8:].strip("<> "))
            if command == "DATA":
                self.say("354 go on")
                letter = b"".join(iter(self.rfile.readline, b".\r\n")).decode()
                self.inbox.arrived.append((recipients, email.message_from_string(letter)))
                recipients = []
            self.say("221 bye" if command == "QUIT" else "250 ok")
            if command == "QUIT":
                return


class SlackHandler(socketserver.StreamRequestHandler):
    """Be the proxy to hooks.slack.com, and hooks.slack.com behind it."""

    inbox: Inbox
    context: ssl.SSLContext

    def handle(self) -> None:
        asked = self.rfile.readline().decode().split()
        while self.rfile.readline().strip():
            pass
        self.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
        with self.context.wrap_socket(self.connection, server_side=True) as secured, secured.makefile("rwb") as stream:
            path = stream.readline().decode().split()[1]
            headers = email.message_from_bytes(b"".join(iter(stream.readline, b"\r\n")))
            self.inbox.arrived.append((asked[1], path, json.loads(stream.read(int(headers["Content-Length"])))))
            stream.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")


def certificate(folder: Path) -> Path:
    """Write a key and a certificate for Slack's name."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "hooks.slack.com")])
    now = datetime.now(UTC)
    built = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("hooks.slack.com")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = folder / "slack.pem"
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(secret + built.public_bytes(serialization.Encoding.PEM))
    return path


def listen(opened: ExitStack, server: socketserver.TCPServer) -> str:
    """Answer in the background until the end; return host and port."""
    opened.enter_context(server)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    opened.callback(server.shutdown)
    return "{}:{}".format(*server.server_address[:2])


@pytest.fixture(scope="module")
def receivers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Receivers]:
    """Have a webhook, a mail server and Slack; a Prefect server that starts later finds Slack through a proxy."""
    folder = tmp_path_factory.mktemp("receivers")
    hooks, mails, slack = Inbox(), Inbox(), Inbox()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    pem = certificate(folder)
    context.load_cert_chain(pem)
    place = ("127.0.0.1", 0)
    with ExitStack() as opened:
        hook = listen(opened, ThreadingHTTPServer(place, type("Hook", (HookHandler,), {"inbox": hooks})))
        mail = listen(opened, socketserver.ThreadingTCPServer(place, type("Mail", (MailHandler,), {"inbox": mails})))
        handler = type("Slack", (SlackHandler,), {"inbox": slack, "context": context})
        proxy = listen(opened, socketserver.ThreadingTCPServer(place, handler))
        environment = opened.enter_context(pytest.MonkeyPatch.context())
        environment.setenv("HTTPS_PROXY", f"http://{proxy}")
        environment.setenv("https_proxy", f"http://{proxy}")
        environment.setenv("REQUESTS_CA_BUNDLE", str(pem))
        secrets = {
            "SLACK": f"https://hooks.slack.com{SLACK_PATH}",
            "SMTP_URL": f"smtp://{mail}",
            "HOOK": f"http://{hook}/secret",
        }
        yield Receivers(hooks, mails, slack, f"http://{hook}/hook", secrets)


@pytest.fixture(scope="module")
def api(receivers: Receivers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Have a Prefect server with its services and a password, and its address in Prefect's settings."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PREFECT_SERVER_API_AUTH_STRING", PASSWORD)
        timetable = prefect_server.Timetable(free_port())
        server = prefect_server.start(tmp_path_factory.mktemp("prefect"), timetable=timetable)
        try:
            url = server.wait()
            ours = {PREFECT_API_URL: url, PREFECT_UI_URL: url.removesuffix("/api"), PREFECT_API_AUTH_STRING: PASSWORD}
            with temporary_settings(ours):
                yield url
        finally:
            server.stop()


@pytest.fixture(autouse=True)
def empty_inboxes(receivers: Receivers) -> None:
    """Begin each test without the messages of another."""
    for inbox in (receivers.hooks, receivers.mails, receivers.slack):
        inbox.arrived.clear()


@pytest.fixture
def model() -> str:
    """Return the name of a model that no other test has."""
    return f"model-{uuid4().hex[:8]}"


def ask(work: Callable[[PrefectClient], Awaitable[T]]) -> T:
    """Do something with a client of the server."""

    async def asked() -> T:
        async with get_client() as client:
            return await work(client)

    return asyncio.run(asked())


def apply(model: str, config: NotifyConfig, environment: dict[str, str] | None = None) -> tuple[str, ...]:
    """Apply a configuration."""
    return ask(lambda client: apply_notifications(client, model, config, environment or {}))


def automations(model: str) -> list[Automation]:
    """List the automations of a model by name."""
    found = ask(lambda client: client.read_automations(limit=200))
    return sorted((one for one in found if f"-{model}-" in one.name), key=lambda one: one.name)


def blocks(model: str) -> list[str]:
    """List the blocks of a model by type and name."""
    found = ask(lambda client: client.read_block_documents(include_secrets=False))
    return sorted(f"{b.block_type.slug}/{b.name}" for b in found if b.block_type and f"-{model}-" in (b.name or ""))


def send(api: str, *news: News) -> None:
    """Give events to the server."""
    events = [
        {"event": n.event, "resource": n.resource, "payload": n.payload, "id": str(uuid4()), "occurred": now()}
        for n in news
    ]
    httpx.post(f"{api}/events", json=events, auth=("me", "secret")).raise_for_status()


def now() -> str:
    """Return the time as an event has it."""
    return datetime.now(UTC).isoformat()


def drift(model: str, reason: str) -> News:
    """Return an event that tells."""
    return drift_news(model, "7", [reason], {}, "")


def end_run(model: str, state: State[Any]) -> str:
    """Have a run of a model's deployment end; return its id."""

    async def work(client: PrefectClient) -> str:
        flow_id = await client.create_flow_from_name("retrain")
        deployment = await client.create_deployment(flow_id, model, tags=["evergreen", f"model:{model}"])
        run = await client.create_flow_run_from_deployment(deployment, name=f"retrain {model}")
        await client.set_flow_run_state(run.id, state, force=True)
        return str(run.id)

    return ask(work)


def test_a_verdict_reaches_every_channel_once(api: str, receivers: Receivers, model: str) -> None:
    """What a flow announces arrives at the webhook, by mail and in Slack, once each; what is not asked for does not."""
    apply(
        model,
        NotifyConfig(
            on=["promote", "reject"],
            slack="env:SLACK",
            webhook=receivers.hook_url,
            email=["a@example.com", "b@example.com"],
            email_from="evergreen@example.com",
        ),
        receivers.environment,
    )
    script = f"""
        from prefect import flow
        from flows.notify import announce
        from flows.outcome import Outcome

        def outcome(decision, champion):
            return Outcome({model!r}, "r", decision, ("Better: auc 0.81 < 0.82.",), "7", champion, {{"auc": 0.82}},
                {{"auc": 0.81}}, {{}}, {{}}, "", {{"report": "", "mlflow_run": "http://mlflow/r"}})

        @flow(name="retrain", flow_run_name="retrain it")
        def retrain():
            announce(outcome("PROMOTE", "7"), "auc", "6")
            announce(outcome("HOLD", "6"), "auc", "6")
            announce(outcome("REJECT", "6"), "auc", "6")

        retrain()
    """
    environment = {
        "PREFECT_API_URL": api,
        "PREFECT_API_AUTH_STRING": PASSWORD,
        "PREFECT_HOME": str(PREFECT_HOME.value()),
        "DO_NOT_TRACK": "1",
    }
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], cwd=ROOT, env=environment, check=True)
    hooks, mails, slack = receivers.hooks.take(2), receivers.mails.take(4), receivers.slack.take(2)
    text = (
        "It replaces version 6.\nBetter: auc 0.81 < 0.82.\nauc: 0.82, version 6: 0.81\n\n"
        f"MLflow: http://mlflow/r\nRun: {api.removesuffix('/api')}/runs/flow-run/"
    )
    subjects = [f"{model}: version 7 is in production", f"{model}: version 7 is rejected"]

    assert subjects == sorted(body["subject"] for _, _, body in hooks)
    told = next(body for _, _, body in hooks if body["occasion"] == "promote")
    assert [("/hook", "application/json")] * 2 == [(path, kind) for path, kind, _ in hooks]
    assert f"{subjects[0]}\n{text}" == told["text"][:-36]
    assert ("evergreen.model.promoted", "7", 0.82) == (
        told["event"],
        told["details"]["version"],
        told["details"]["score"],
    )
    assert sorted((s, to) for s in subjects for to in ("a@example.com", "b@example.com")) == sorted(
        (letter["Subject"], to) for recipients, letter in mails for to in recipients
    )
    letter = next(letter for _, letter in mails if letter["Subject"] == subjects[0])
    assert ("Evergreen <evergreen@example.com>", "text/plain") == (letter["From"], letter.get_content_type())
    assert text in letter.get_payload(decode=True).decode().replace("\r\n", "\n")
    assert [("hooks.slack.com:443", SLACK_PATH)] * 2 == [(host, path) for host, path, _ in slack]
    shown = json.dumps([body for _, _, body in slack])
    assert all(subject in shown for subject in subjects)


def test_a_run_that_fails_or_crashes_is_told_once(api: str, receivers: Receivers, model: str) -> None:
    """A failure of the model's runs arrives with its reason and its page; those of another model do not."""
    apply(model, NotifyConfig(webhook=receivers.hook_url))
    end_run(f"other-{model}", Failed(message="not ours"))
    first = end_run(model, Failed(message="ValueError: no rows"))
    second = end_run(model, Crashed(message="Its process was killed."))
    found = receivers.hooks.take(2)
    page = f"{api.removesuffix('/api')}/runs/flow-run"
    advice = "Started again from its page, the run goes on from the stage that failed."

    assert [
        f"{model}: retrain crashed\nIts process was killed.\n\n{advice}\nRun: {page}/{second}",
        f"{model}: retrain failed\nValueError: no rows\n\n{advice}\nRun: {page}/{first}",
    ] == sorted(body["text"] for _, _, body in found)
    assert {first, second} == {body["details"]["run_id"] for _, _, body in found}


def test_applying_again_adds_nothing(api: str, receivers: Receivers, model: str) -> None:
    """A restart leaves one automation per occasion and one block per channel, and a pause by a person stays."""
    config = NotifyConfig(on=["drift", "hold"], webhook="env:HOOK", slack="env:SLACK")
    names = apply(model, config, receivers.environment)
    before = automations(model)
    ask(lambda client: client.pause_automation(before[1].id))
    apply(model, config, receivers.environment)
    after = automations(model)

    assert [f"evergreen-notify-{model}-drift", f"evergreen-notify-{model}-hold"] == [one.name for one in after]
    assert (set(names), [one.id for one in before]) == ({one.name for one in after}, [one.id for one in after])
    assert [True, False] == [one.enabled for one in after]
    assert [f"slack-webhook/evergreen-notify-{model}-slack", f"webhook/evergreen-notify-{model}-webhook"] == blocks(
        model
    )


def test_a_changed_file_changes_what_is_told(api: str, receivers: Receivers, model: str) -> None:
    """Another address, occasion or channel takes the place of the one before."""
    apply(model, NotifyConfig(on=["drift"], webhook=receivers.hook_url, slack="env:SLACK"), receivers.environment)
    before = automations(model)
    apply(model, NotifyConfig(on=["drift", "hold"], webhook=f"{receivers.hook_url}/new"), receivers.environment)
    after = automations(model)
    send(api, drift(model, "first"), drift(model, "second"))

    assert [["/hook/new", "first"], ["/hook/new", "second"]] == sorted(
        [path, body["details"]["reasons"][0]] for path, _, body in receivers.hooks.take(2)
    )
    assert [] == receivers.slack.arrived
    assert (1, 2, before[0].id) == (len(before), len(after), after[0].id)
    assert [f"webhook/evergreen-notify-{model}-webhook"] == blocks(model)


@pytest.mark.parametrize("config", [NotifyConfig(), NotifyConfig(on=[], webhook="env:HOOK"), None])
def test_what_is_removed_from_the_file_is_removed(
    api: str, receivers: Receivers, model: str, config: NotifyConfig | None
) -> None:
    """Without channels, without occasions or without the model nothing of it is left."""
    apply(model, NotifyConfig(webhook="env:HOOK", slack="env:SLACK"), receivers.environment)
    there = (len(automations(model)), len(blocks(model)))
    if config is None:
        ask(lambda client: remove_notifications(client, model))
    else:
        apply(model, config, receivers.environment)

    assert ((4, 2), [], []) == (there, automations(model), blocks(model))


def test_a_missing_variable_changes_nothing(api: str, receivers: Receivers, model: str) -> None:
    """A configuration that can't work is refused before anything is changed."""
    apply(model, NotifyConfig(on=["drift"], webhook=receivers.hook_url))

    with pytest.raises(InputError, match="notify.slack names a variable of the environment, but got SLACK=nothing"):
        apply(model, NotifyConfig(on=["hold"], slack="env:SLACK"))
    assert [f"evergreen-notify-{model}-drift"] == [one.name for one in automations(model)]


def test_a_block_that_a_person_has_made_is_used(api: str, receivers: Receivers, model: str) -> None:
    """Messages also go through any notification block that exists, and the block stays."""
    block = CustomWebhookNotificationBlock(
        name="theirs", url=f"{receivers.hook_url}/theirs", json_data={"said": "{{subject}}|{{body}}"}
    )
    block.save(f"theirs-{model}", overwrite=True)
    apply(model, NotifyConfig(on=["drift"], blocks=[f"custom-webhook/theirs-{model}"]))
    send(api, drift(model, "income has moved"))
    found = receivers.hooks.take(1)
    apply(model, NotifyConfig())

    assert (f"{model}: the data has drifted", "income has moved") == (
        found[0][2]["said"].partition("|")[0],
        found[0][2]["said"].splitlines()[1],
    )
    assert 1 == len(found)
    assert CustomWebhookNotificationBlock.load(f"theirs-{model}")


def test_a_wrong_block_is_named(api: str, model: str) -> None:
    """A block that is not there, or sends nothing, is refused."""
    Secret(value="x").save(f"secret-{model}")

    with pytest.raises(InputError, match=r"blocks that exist in Prefect, but got 'slack-webhook/team', which does not"):
        apply(model, NotifyConfig(blocks=["slack-webhook/team"]))
    with pytest.raises(InputError, match=rf"blocks that send messages, but got 'secret/secret-{model}', which does"):
        apply(model, NotifyConfig(blocks=[f"secret/secret-{model}"]))
    assert [] == automations(model)


def test_without_a_server_nothing_is_sent(model: str) -> None:
    """An event never makes Prefect start a server of its own."""
    from prefect.events.worker import EventsWorker

    before = set(EventsWorker._instances)
    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        emit(drift(model, "nobody hears it"))

    assert before == set(EventsWorker._instances)


def test_an_event_that_is_too_large_is_only_logged(api: str, model: str, caplog: pytest.LogCaptureFixture) -> None:
    """What Prefect refuses never fails a run."""
    emit(drift_news(model, "7", [], {f"column {number}": 0.1 for number in range(100_000)}, ""))

    assert [f"Nobody is told of evergreen.drift.detected of {model}: Event is too large to emit"] == [
        record.getMessage().partition(" (")[0] for record in caplog.records if record.name == "evergreen"
    ]
