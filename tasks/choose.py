"""Choose: of the candidates of several families, the one that goes on."""

from infra.clusters import client_of, on_one_worker
from tasks import _candidate, _choose, _encode, _finish, _learning, _metrics, _split
from tasks._candidate import BUNDLE_CODE, Candidate
from tasks._choose import Choice
from tasks._learning import LearningJob
from tasks.stage import Run, stage


@stage(
    cached=True,
    code=(_choose, _candidate, _encode, _finish, _learning, _metrics, _split, *BUNDLE_CODE),
    libraries=("xgboost", "onnxruntime"),
)
def choose(run: Run, job: LearningJob, candidates: tuple[Candidate, ...], with_ensemble: bool) -> Choice:
    """Compare the candidates on the validation rows, from which their pilots have not learnt."""
    return on_one_worker(client_of(run.cluster), _choose.choose, run.store, job, candidates, with_ensemble)
