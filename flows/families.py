"""Train the families that are asked for, each as it is planned, and choose among them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from flows.config import RetrainConfig
from flows.ui import show_plan
from infra.worker_shapes import shapes_of
from tasks._candidate import Candidate
from tasks._choose import Choice, sole
from tasks._continue import families_of
from tasks._encode import Encoded
from tasks._learning import LearningJob
from tasks._profile import Profile
from tasks._sample import Sample
from tasks._snapshot import Snapshot
from tasks._versions import ModelVersion
from tasks.choose import choose
from tasks.search import search
from tasks.search_neural import search_neural
from tasks.split import Split
from tasks.stage import Run
from tasks.start import start
from tasks.train import learn_from, plan_training, train, training_job
from tasks.train_neural import planned_as, restarted_job, train_neural


@dataclass(frozen=True)
class Grounds:
    """What all families learn from."""

    snapshot: Snapshot
    encoded: Encoded
    sides: Split
    rows: Sample
    seen: Profile
    metric: str


@dataclass(frozen=True)
class Contest:
    """What was trained, and what goes on."""

    plans: tuple[str, ...]
    job: LearningJob
    """Of the candidate that goes on, or of one of those whose mean does."""
    choice: Choice


def contest(run: Run, config: RetrainConfig, grounds: Grounds, champion: ModelVersion | None) -> Contest:
    """Train every family, and choose the candidate that goes on."""
    families, note = families_of(config.train, champion)
    if note:
        run.reporter.noted(note)
    fits = {
        "xgboost": fit_trees,
        "neural": fit_network,
    }
    trained = {family: fits[family](run, config, grounds, champion) for family in families}
    candidates = tuple(candidate for _, _, candidate in trained.values())
    jobs: dict[str, LearningJob] = {family: job for family, (_, job, _) in trained.items()}
    first = jobs[families[0]]
    choice = choose(run, first, candidates, config.train.ensemble) if len(candidates) > 1 else sole(candidates[0])
    if choice.sentence:
        run.reporter.noted(choice.sentence)
    plans = tuple(plan for plan, _, _ in trained.values())
    return Contest(plans, jobs.get(choice.candidate.family, first), choice)


def fit_trees(
    run: Run, config: RetrainConfig, grounds: Grounds, champion: ModelVersion | None
) -> tuple[str, LearningJob, Candidate]:
    """Plan and train XGBoost; return the plan in words, the job and the candidate."""
    snapshot, encoded, sides, rows = grounds.snapshot, grounds.encoded, grounds.sides, grounds.rows
    shapes = shapes_of(run.cluster)
    plan = plan_training(run.store, run.model, encoded, sides, rows, grounds.seen, config.train, shapes)
    run.reporter.noted(plan.sentence)
    show_plan(run, encoded.schema, plan.sentence, grounds.metric, "plan")
    job = training_job(run.model, snapshot, encoded, sides, rows, config.train, plan)
    job = start(run, job, config.train, champion)
    if config.train.search.trials and job.mode == "fresh":
        job = replace(job, config=search(run, job, config.train.search).config)
    candidate = train(run, job)
    learn_from(run, plan)
    return plan.sentence, job, candidate


def fit_network(
    run: Run, config: RetrainConfig, grounds: Grounds, champion: ModelVersion | None
) -> tuple[str, LearningJob, Candidate]:
    """Plan and train a network; return the plan in words, the job and the candidate."""
    given = (run.model, run.store, grounds.snapshot, grounds.encoded, grounds.sides, grounds.rows, grounds.seen)
    shapes = shapes_of(run.cluster)
    job, plan, note = restarted_job(*given, config.train, shapes, champion)
    for line in filter(None, [plan.sentence, note]):
        run.reporter.noted(line)
    if config.train.search.trials and job.mode == "fresh":
        planned = planned_as(*given, config.train, shapes)
        found = search_neural(run, job, planned, config.train.search).config
        if found != job.config:
            job, plan = planned(found)
            run.reporter.noted(plan.sentence)
    show_plan(run, grounds.encoded.schema, plan.sentence, grounds.metric, "plan-neural")
    return plan.sentence, job, train_neural(run, job)
