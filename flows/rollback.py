"""Put an earlier version back in production: ledger, aliases, serving target."""

from pathlib import Path
from typing import Any

from flows.config import RetrainConfig
from infra.errors import InputError
from infra.ledger import Ledger
from infra.serving.release import release
from infra.settings import Settings
from infra.storage import Store
from tasks._maintain import require_bundle
from tasks._versions import load_version, target_of


def roll_back(config: RetrainConfig, path: Path, to: str | None) -> dict[str, Any]:
    """Make a version the champion again.

    Raises:
        InputError: there is no such version, or it is the champion already.
    """
    from flows.workspace import open_tracking
    from tasks.promote import follow_ledger

    settings = Settings()
    places = settings.locate(path)
    store = Store(places.root)
    model = config.model.name
    ledger = Ledger(store, model)
    champion = ledger.champion()
    wanted = to or ledger.previous()
    if champion is None or wanted is None:
        raise InputError(
            f"A rollback needs an earlier champion, but got none for {model!r} (champion={champion or 'none'}). "
            f"See evergreen history {path}."
        )
    version = load_version(store, model, wanted)
    if wanted == champion:
        raise InputError(
            f"A rollback goes to another version, but got version={wanted}, which is the champion already. "
            f"See evergreen history {path}."
        )
    require_bundle(store, ledger, version)
    tracking = open_tracking(settings, places, model)
    ledger.append(
        "rollback",
        version=wanted,
        expected=champion,
        run_id=version.run_id,
        reason="Asked for by a person.",
        details={},
    )
    follow_ledger(ledger, tracking, model)
    servers: tuple[str, ...] = ()
    if config.deploy.target == "local":
        servers = release(store, target_of(version), config.deploy.timeout_seconds).servers
    return {"model": model, "champion_version": wanted, "previous_version": champion, "servers": list(servers)}
