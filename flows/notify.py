"""Notifications: Prefect's blocks and automations as [notify] wants them, and the events that set them off.

An automation per model and occasion waits for the events, and sends a message through a block per channel. Their
names follow from the model's, so that applying again changes what is there and adds nothing.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from prefect.blocks.core import Block
from prefect.blocks.notifications import SlackWebhook
from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import BlockDocument
from prefect.events import emit_event
from prefect.events.actions import ActionTypes, CallWebhook, SendNotification
from prefect.events.schemas.automations import Automation, AutomationCore, EventTrigger
from prefect.exceptions import EventTooLarge, ObjectNotFound
from prefect.settings import get_current_settings
from prefect.types import SecretDict
from pydantic import SecretStr

from infra.errors import InputError
from tasks._notify import (
    EVENTS,
    KINDS,
    Channel,
    Kind,
    Message,
    News,
    NotifyConfig,
    Occasion,
    channels_of,
    condition_of,
    message_of,
    verdict_news,
    webhook_payload,
)

if TYPE_CHECKING:
    from flows.outcome import Outcome

log = logging.getLogger("evergreen")

BLOCK_CLASSES: Mapping[Kind, type[Block]] = {
    "slack": SlackWebhook,
    "webhook": Webhook,
    # Prefect has no block for a mail server. This one hands every address that is not Slack's to Apprise, which
    # sends mail; a class of ours would have to be installed where the server runs.
    "email": SlackWebhook,
}
TAG = "evergreen"


async def apply_notifications(
    client: PrefectClient, model: str, config: NotifyConfig, environment: Mapping[str, str] = os.environ
) -> tuple[str, ...]:
    """Make Prefect tell what the configuration asks for, and nothing else; return the names of the automations.

    An automation that somebody has paused stays paused.

    Raises:
        InputError: a variable or a block is missing or wrong; nothing is changed then.
    """
    channels = channels_of(config, environment)
    theirs = [await existing_block(client, reference) for reference in config.blocks]
    occasions = tuple(dict.fromkeys(config.on)) if channels or theirs else ()
    if occasions:
        ours = [await save_block(client, model, channel) for channel in channels]
        for occasion in occasions:
            await upsert(client, automation_of(model, occasion, [*ours, *theirs]))
    await remove_leftovers(client, model, occasions, [channel.kind for channel in channels] if occasions else [])
    return tuple(automation_name(model, occasion) for occasion in occasions)


async def remove_notifications(client: PrefectClient, model: str) -> None:
    """Remove all that was applied for a model."""
    await remove_leftovers(client, model, [], [])


def announce(outcome: Outcome, metric: str, champion_before: str | None) -> None:
    """Emit the event of a verdict. What Prefect can't be told is logged; the run goes on."""
    emit(
        verdict_news(
            outcome.model,
            outcome.version,
            outcome.decision,
            outcome.reasons,
            champion_before=champion_before,
            champion_after=outcome.champion_version,
            metric=metric,
            score=outcome.challenger.get(metric),
            champion_score=outcome.champion.get(metric) if outcome.champion else None,
            report=outcome.artifacts.get("report", ""),
            mlflow_run=outcome.artifacts.get("mlflow_run", ""),
        )
    )


def emit(news: News) -> None:
    """Send an event in the background. Prefect logs what it can't send, and raises nothing but for its size."""
    if get_current_settings().api.url is None:
        return  # Prefect would start a server of its own
    try:
        emit_event(news.event, resource=news.resource, payload=news.payload)
    except EventTooLarge as error:
        log.warning("Nobody is told of %s of %s: %s", news.event, news.model, error)


async def save_block(client: PrefectClient, model: str, channel: Channel) -> BlockDocument:
    """Create or update the block of a channel."""
    address = SecretStr(channel.address)
    block: Block
    if channel.kind == "webhook":
        block = Webhook(url=address, headers=SecretDict({"Content-Type": "application/json"}))
    else:
        block = SlackWebhook(url=address)
    name = block_name(model, channel.kind)
    await block.asave(name, overwrite=True, client=client)
    return await client.read_block_document_by_name(name, block.get_block_type_slug(), include_secrets=False)


async def existing_block(client: PrefectClient, reference: str) -> BlockDocument:
    """Return a block that somebody has made in Prefect.

    Raises:
        InputError: there is none of that name, or it can't send messages.
    """
    slug, _, name = reference.partition("/")
    try:
        block = await client.read_block_document_by_name(name, slug, include_secrets=False)
    except ObjectNotFound as error:
        raise InputError(
            f"notify.blocks names blocks that exist in Prefect, but got {reference!r}, which does not. "
            "Make it on the page Blocks, or correct the name."
        ) from error
    if not (is_webhook(block) or can_notify(block)):
        raise InputError(
            f"notify.blocks names blocks that send messages, but got {reference!r}, which does not. Name another one."
        )
    return block


def is_webhook(block: BlockDocument) -> bool:
    """Return whether a block takes a JSON object; the others take a text."""
    return block.block_type is not None and block.block_type.slug == Webhook.get_block_type_slug()


def can_notify(block: BlockDocument) -> bool:
    """Return whether a block sends messages to people."""
    return block.block_schema is not None and "notify" in block.block_schema.capabilities


def automation_of(model: str, occasion: Occasion, blocks: Sequence[BlockDocument]) -> AutomationCore:
    """Return the automation that tells of one kind of event."""
    condition = condition_of(occasion, model)
    message = message_of(occasion, model, get_current_settings().ui_url or "")
    return AutomationCore(
        name=automation_name(model, occasion),
        description=f"Made by evergreen up from [notify] of {model}; changes other than a pause do not stay.",
        tags=[TAG, f"model:{model}"],
        trigger=EventTrigger(
            expect=set(condition.events), match=condition.match, match_related=condition.match_related
        ),
        actions=[action_of(occasion, model, message, block) for block in blocks],
    )


def action_of(occasion: Occasion, model: str, message: Message, block: BlockDocument) -> ActionTypes:
    """Return what sends a message through a block."""
    if is_webhook(block):
        return CallWebhook(block_document_id=block.id, payload=webhook_payload(occasion, model, message))
    return SendNotification(block_document_id=block.id, subject=message.subject, body=message.body)


async def upsert(client: PrefectClient, wanted: AutomationCore) -> None:
    """Create an automation, or change the one of its name where it differs."""
    found = await client.read_automations_by_name(wanted.name)
    if not found:
        await client.create_automation(wanted)
        return
    first, *twins = found
    for twin in twins:
        await client.delete_automation(twin.id)
    kept = wanted.model_copy(update={"enabled": first.enabled})
    if content(first) != content(kept):
        await client.update_automation(first.id, content(kept))


def content(automation: AutomationCore | Automation) -> AutomationCore:
    """Return an automation without what the server adds, and refuses to be told in a change."""
    return AutomationCore.model_validate(automation.model_dump(exclude={"id", "owner_resource"}))


async def remove_leftovers(
    client: PrefectClient, model: str, occasions: Sequence[Occasion], kinds: Sequence[Kind]
) -> None:
    """Remove the automations of other occasions and the blocks of other channels than these."""
    for occasion in EVENTS:
        if occasion not in occasions:
            for automation in await client.read_automations_by_name(automation_name(model, occasion)):
                await client.delete_automation(automation.id)
    for kind in KINDS:
        if kind not in kinds:
            await delete_block(client, block_name(model, kind), BLOCK_CLASSES[kind].get_block_type_slug())


async def delete_block(client: PrefectClient, name: str, slug: str) -> None:
    """Delete a block if it is there."""
    try:
        block = await client.read_block_document_by_name(name, slug, include_secrets=False)
    except ObjectNotFound:
        return
    await client.delete_block_document(block.id)


def automation_name(model: str, occasion: Occasion) -> str:
    """Return the name of the automation of an occasion."""
    return f"evergreen-notify-{model}-{occasion}"


def block_name(model: str, kind: Kind) -> str:
    """Return the name of the block of a channel."""
    return f"evergreen-notify-{model}-{kind}"
