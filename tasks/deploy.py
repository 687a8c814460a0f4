"""Deploy: the serving target runs the new bundle, or the old one stays."""

from infra.serving.release import DeployConfig, Deployed, release
from tasks._versions import ModelVersion, target_of
from tasks.stage import Run, stage


@stage()
def deploy(run: Run, version: ModelVersion, config: DeployConfig) -> Deployed:
    """Release a version, and wait until every running server answers with it.

    Raises:
        RunError: the bundle fails its check, or a server refuses it; the version before is released again.
    """
    if config.target == "none":
        return Deployed(None, ())
    return release(run.store, target_of(version), config.timeout_seconds)
