"""Compress a registered version by itself.

compress -> certify -> evaluate -> register. Nothing is put in production.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prefect import State, flow

import infra.lean_xgboost  # noqa: F401  first
from flows.config import RetrainConfig
from flows.deployed import skipped
from flows.ui import show_frontier
from flows.workspace import open_run
from infra.errors import InputError
from tasks._certify import fates
from tasks._compress import check_techniques
from tasks._trained import load_trained
from tasks._versions import champion_of, load_version
from tasks.certify import certify, log_variants
from tasks.compress import compress as make_variants
from tasks.evaluate import evaluate
from tasks.register import register_variant
from tasks.stage import Run


@dataclass(frozen=True)
class Compressed:
    """The forms of a version, and the one that is registered."""

    model: str
    of_version: str
    version: str
    """The version of the chosen form: that which was compressed, where nothing better was found."""
    sentence: str
    variants: tuple[dict[str, Any], ...]
    failures: tuple[dict[str, str], ...]
    metrics: dict[str, float]
    """Of the chosen form, on the holdout."""

    def to_json(self) -> dict[str, Any]:
        """Return the public form."""
        return asdict(self)


@flow(name="compress", flow_run_name="compress {config.model.name}", persist_result=False)
def compress(config: RetrainConfig, config_path: str, version: str = "") -> Compressed | State[None]:
    """Make the smaller forms of a version, and register the best that is proven to be as good.

    Args:
        config: What run this is. The form shows what the file says; a change is for this run alone.
        config_path: The model's evergreen.toml; relative folders start beside it.
        version: The version that is compressed; empty: the one in production.
    """
    if end := skipped("compress", config, config_path):
        return end
    check_techniques(config.compress)
    with open_run(config, Path(config_path), "compress") as run:
        of = load_version(run.store, run.model, version or champion_name(run, config_path))
        trained = load_trained(run.store, of)
        encoded, rules = trained.job.encoded, (of.rule,)
        frontier = make_variants(run, trained.job, trained.candidate, trained.metric, config.compress)
        certified = certify(run, frontier, encoded, rules, trained.metric, config.compress)
        chosen = evaluate(run, certified.bundle, encoded, encoded, rules, trained.metric)
        registered = register_variant(run, chosen, of)
        log_variants(run, frontier, certified)
        show_frontier(run, frontier, certified, trained.candidate.loss)
        outcomes = fates(frontier, certified)
        return Compressed(
            model=run.model,
            of_version=of.version,
            version=registered.version.version,
            sentence=certified.sentence,
            variants=tuple(
                {
                    "name": variant.name,
                    "technique": variant.technique,
                    **asdict(variant.measured),
                    "loss": variant.loss,
                    "fate": fate,
                    "why": why,
                }
                for variant, (fate, why) in zip(frontier.variants, outcomes, strict=True)
            ),
            failures=tuple(asdict(failure) for failure in frontier.failures),
            metrics=chosen.metrics,
        )


def champion_name(run: Run, config_path: str) -> str:
    """Return the version in production.

    Raises:
        InputError: there is none.
    """
    champion = champion_of(run.store, run.ledger, run.model)
    if champion is None:
        raise InputError(
            f"Compressing needs a version, but got none in production for {run.model!r}. "
            f"Run evergreen retrain {config_path} first."
        )
    return champion.version
