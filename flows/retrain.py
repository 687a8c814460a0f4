"""Retrain a model and put it in production if it is better.

ingest -> profile -> encode -> split -> sample -> search -> train -> choose -> compress -> certify -> evaluate
-> compare -> decide -> draw -> register -> promote -> deploy -> report.
A partial run publishes nothing; a run started again goes on from what is cached.
"""

from dataclasses import replace
from pathlib import Path

from prefect import State, flow

import infra.lean_xgboost  # noqa: F401  first
from flows.config import RetrainConfig
from flows.deployed import skipped
from flows.families import Grounds, contest
from flows.notify import announce
from flows.outcome import Outcome, outcome_of
from flows.ui import show_story
from flows.workspace import environment, open_run
from infra.ledger import StaleChampionError
from tasks._compress import broken_budgets, check_techniques
from tasks._continue import kept_schema
from tasks._decide import check_floors
from tasks._kinds import schema_text
from tasks._sample import check_design
from tasks._story import Judged, Training
from tasks._trained import keep_trained
from tasks._versions import champion_of
from tasks.certify import certify
from tasks.compress import compress
from tasks.decide import compare, decide
from tasks.deploy import deploy
from tasks.encode import encode
from tasks.evaluate import evaluate, holdout_rules, inputs_of
from tasks.ingest import ingest
from tasks.profile import profile, trained_on
from tasks.promote import promote, record, undone_if_it_fails
from tasks.register import register
from tasks.report import draw, report
from tasks.sample import sample
from tasks.split import split
from tasks.stage import Run

MAX_DECISIONS = 3
"""How often a verdict is given when another run changes the champion meanwhile."""


@flow(name="retrain", flow_run_name="retrain {config.model.name}", persist_result=False)
def retrain(config: RetrainConfig, config_path: str) -> Outcome | State[None]:
    """Return the verdict, and the version in production after it.

    Args:
        config: What run this is. The form shows what the file says; a change is for this run alone.
        config_path: The model's evergreen.toml; relative folders start beside it.
    """
    if end := skipped("retrain", config, config_path):
        return end
    with open_run(config, Path(config_path), "retrain") as run:
        training = learn(run, config)
        for decision in range(1, MAX_DECISIONS + 1):
            judged = judge(run, config, training)
            if judged.verdict.decision != "PROMOTE" or not config.promote.enabled:
                record(run, judged)
                break
            try:
                judged = ship(run, config, judged)
                break
            except StaleChampionError:
                if decision == MAX_DECISIONS:
                    raise
        page = report(run, training, judged, config.model_dump(mode="json"), environment(run.base))
        show_story(run, training)
        outcome = outcome_of(run, training, judged, page)
        announce(outcome, training.metric, judged.champion_before.version if judged.champion_before else None)
        return outcome


def learn(run: Run, config: RetrainConfig) -> Training:
    """Go from the source files to a challenger."""
    champion = champion_of(run.store, run.ledger, run.model)
    snapshot = ingest(run, config.data)
    profiled = profile(run, snapshot, config.data, config.model.task, trained_on(run.store, champion))
    seen, (schema, left_out) = profiled.profile, kept_schema(profiled.schema, config.train, champion)
    metric = config.model.metric_of(schema.task)
    check_floors(schema.task, config.promote)
    check_design(config.sampling, schema)
    check_techniques(config.compress)
    for line in (schema_text(schema, metric), *profiled.changes, *filter(None, [left_out])):
        run.reporter.noted(line)
    encoded = encode(run, snapshot, schema, seen, config.data)
    sides = split(run, encoded, config.split, seen)
    rows = sample(run, encoded, sides, config.sampling)
    won = contest(run, config, Grounds(snapshot, encoded, sides, rows, seen, metric), champion)
    frontier = compress(run, won.job, won.choice.candidate, metric, config.compress)
    certified = certify(run, frontier, encoded, (sides.rule,), metric, config.compress)
    return Training(
        snapshot,
        seen,
        profiled.changes,
        encoded,
        sides.rule,
        sides.counts,
        rows,
        won.plans,
        won.job,
        won.choice,
        frontier,
        certified,
        metric,
    )


def judge(run: Run, config: RetrainConfig, training: Training) -> Judged:
    """Hold the challenger against the champion of this moment, on rows that neither has trained on."""
    before = champion_of(run.store, run.ledger, run.model)
    encoded, metric = training.encoded, training.metric
    rules = holdout_rules(training.rule, before, encoded.schema)
    challenger = evaluate(run, training.certified.bundle, encoded, encoded, rules, metric)
    champion, comparison = None, None
    if before is not None:
        inputs = inputs_of(run, before, encoded, training.snapshot, training.profile, config.data)
        champion = evaluate(run, before.bundle, encoded, inputs, rules, metric)
        if before.bundle.digest != challenger.bundle.digest:
            comparison = compare(run, encoded, challenger, champion, config.promote, metric)
    is_fresher = before is None or not {file.key for file in training.snapshot.files} <= set(before.file_keys)
    shipped = training.frontier.variants[training.certified.index]
    budgets = tuple(broken_budgets(shipped.measured, config.compress))
    verdict = decide(run, encoded, challenger, champion, comparison, config.promote, metric, is_fresher, budgets)
    made = (training.choice, training.frontier, training.certified, config.compress.tolerance, training.sample)
    pictures = draw(run, encoded.schema, challenger, champion if comparison else None, comparison, *made)
    registered = register(run, challenger, verdict, training.snapshot, training.rule, training.candidate.origin)
    keep_trained(run.store, registered.version, training.job, training.candidate, metric)
    return Judged(
        challenger, champion, before, verdict, pictures, registered.version, before.version if before else None
    )


def ship(run: Run, config: RetrainConfig, judged: Judged) -> Judged:
    """Promote the challenger and have it answer; if it can't, the champion comes back."""
    promote(run, judged)
    with undone_if_it_fails(run, judged):
        deploy(run, judged.version, config.deploy)
    return replace(judged, champion_version=judged.version.version)
