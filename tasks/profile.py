"""Profile: what the columns hold, file by file, and the schema that follows."""

from dataclasses import dataclass, replace

from infra.bundle.schema import Schema, Task
from infra.clusters import client_of, run_on_workers
from infra.errors import InputError
from infra.storage import Store
from tasks._cache import Cache, key_of
from tasks._candidate import load_bundle
from tasks._jobs import PROFILES, profile_job, profile_key
from tasks._kinds import infer_schema, schema_changes
from tasks._profile import Profile, merge
from tasks._snapshot import DataConfig, Snapshot
from tasks._versions import ModelVersion
from tasks.stage import Run, stage


@dataclass(frozen=True)
class Profiled:
    """The merged profile of a snapshot, and the schema."""

    profile: Profile
    schema: Schema
    changes: tuple[str, ...]
    """How the schema differs from the champion's, in words."""
    num_new: int
    """Files that this run looked at; the others were known."""

    @property
    def is_reused(self) -> bool:
        """Return whether every file was known."""
        return self.num_new == 0


@dataclass(frozen=True)
class Trained:
    """What the champion was trained on, as far as new data is held against it."""

    schema: Schema
    file_keys: tuple[str, ...]


def trained_on(store: Store, champion: ModelVersion | None) -> Trained | None:
    """Return what new data is held against: the champion's schema and files."""
    if champion is None:
        return None
    return Trained(load_bundle(store, champion.bundle).schema, champion.file_keys)


@stage()
def profile(run: Run, snapshot: Snapshot, config: DataConfig, task: Task | None, champion: Trained | None) -> Profiled:
    """Profile the files that no run has seen, merge all profiles, and infer or enforce the schema."""
    keys = [profile_key(file, config.time) for file in snapshot.files]
    cache = Cache(run.store, "profiles")
    known = {key: cache.find(key, PROFILES) for key in keys}
    new = list({key: file for key, file in zip(keys, snapshot.files, strict=True) if known[key] is None}.items())
    if new:
        jobs = [(run.store, file, config.time, key) for key, file in new]
        for (key, _), found in zip(
            new,
            run_on_workers(client_of(run.cluster), profile_job, jobs, on_done=run.advance("profile")),
            strict=True,
        ):
            known[key] = found
    profiles = [profile for key in keys if (profile := known[key]) is not None]
    if champion:
        _check_new_files(snapshot, profiles, champion)
    merged = merged_profile(keys, profiles)
    schema = infer_schema(merged, config, task, champion.schema if champion else None)
    changes = schema_changes(schema, champion.schema if champion else None)
    return Profiled(merged, schema, tuple(changes), num_new=len(new))


def merged_profile(keys: list[str], profiles: list[Profile]) -> Profile:
    """Return the profile of all files, which knows by their keys what it depends on."""
    return replace(merge(profiles), source=key_of(keys))


def _check_new_files(snapshot: Snapshot, profiles: list[Profile], champion: Trained) -> None:
    """Raise an InputError that names the first new file which lacks a column that the champion needs."""
    needed = [column.name for column in champion.schema.inputs]
    for file, seen in zip(snapshot.files, profiles, strict=True):
        missing = [name for name in needed if name not in seen.columns]
        if missing and file.key not in champion.file_keys:
            raise InputError(
                f"A new file keeps the columns of the champion, but got none called "
                f"{', '.join(map(repr, missing))} in {file.path}. "
                "Mend the file, or start a new model under another model.name."
            )
