"""Start: what of the champion a training keeps."""

from infra.clusters import client_of, on_one_worker
from infra.storage import Ref
from tasks import _encode, _finish, _learning, _metrics, _split, _training, _xgboost
from tasks._candidate import BUNDLE_CODE
from tasks._continue import started
from tasks._train import TrainConfig
from tasks._training import TrainingJob
from tasks._versions import ModelVersion
from tasks.stage import Run, stage


@stage(
    cached=True,
    code=(_encode, _finish, _learning, _metrics, _split, _training, _xgboost, *BUNDLE_CODE),
    libraries=("xgboost",),
)
def recheck(run: Run, job: TrainingJob, pilot: Ref) -> float:
    """Measure a champion's pilot on this run's validation rows, from which it has not learnt."""
    return on_one_worker(client_of(run.cluster), _xgboost.pilot_loss, run.store, job, pilot)


def start(run: Run, job: TrainingJob, config: TrainConfig, champion: ModelVersion | None) -> TrainingJob:
    """Return the job with what it keeps of the champion, and say what that is or why it is nothing."""
    begun, note = started(run.store, job, config, champion, lambda job, pilot: recheck(run, job, pilot))
    if note:
        run.reporter.noted(note)
    return begun
