"""Score files with the champion.

ingest -> predict. The output appears when it is whole.
"""

from dataclasses import dataclass
from pathlib import Path

from prefect import State, flow

from flows.config import RetrainConfig
from flows.deployed import skipped
from flows.workspace import open_run
from infra.errors import InputError
from tasks._predict import check_output
from tasks._versions import champion_of
from tasks.ingest import ingest
from tasks.predict import predict as score


@dataclass(frozen=True)
class Predicted:
    """What was scored, by which version."""

    model: str
    version: str
    num_rows: int
    output: str


@flow(name="predict", flow_run_name="predict {config.model.name}", persist_result=False)
def predict(config: RetrainConfig, config_path: str, source: str, output: str) -> Predicted | State[None]:
    """Write the rows of a source with the champion's answers into a Parquet or CSV file.

    Args:
        config: What run this is. The form shows what the file says; a change is for this run alone.
        config_path: The model's evergreen.toml; relative files and folders start beside it.
        source: What is scored: a file, a folder or a pattern, here or on S3.
        output: A .parquet or .csv file, which appears when it is whole.
    """
    if end := skipped("predict", config, config_path):
        return end
    output = str(Path(config_path).parent / output)
    check_output(Path(output))
    with open_run(config, Path(config_path), "predict") as run:
        champion = champion_of(run.store, run.ledger, run.model)
        if champion is None:
            raise InputError(
                f"Scoring needs a model in production, but got none for {run.model!r}. "
                f"Run evergreen retrain {config_path} first."
            )
        snapshot = ingest(run, config.data.model_copy(update={"source": source}))
        num_rows = score(run, snapshot, champion, Path(output))
        return Predicted(run.model, champion.version, num_rows, output)
