"""Profile: what the columns hold, file by file, and the schema that follows."""

from collections.abc import Callable
from dataclasses import dataclass

from infra.bundle.schema import Schema, Task
from infra.clusters import client_of, run_on_workers
from infra.errors import InputError
from infra.storage import Store
from tasks._cache import Cache
from tasks._candidate import load_bundle
from tasks._jobs import PROFILES, merge_job, profile_job, profile_key
from tasks._kinds import infer_schema, schema_changes
from tasks._profile import Profile
from tasks._profile_tree import Node, levels_of, missing_of
from tasks._readers import work_orders
from tasks._snapshot import DataConfig, Snapshot
from tasks._versions import ModelVersion
from tasks.stage import Run, stage

MAX_MERGED_HERE = 4
"""Nodes that are merged in this process; more go to the workers."""


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
    """Profile the units that no run has seen, merge all profiles, and infer or enforce the schema."""
    seen, num_new = profile_units(run.store, run.cluster, snapshot, config.time, on_done=run.advance("profile"))
    if champion:
        check_new_files(run.store, snapshot, config.time, champion)
    else:
        check_alike(seen, snapshot, config)
    schema = infer_schema(seen, config, task, champion.schema if champion else None)
    changes = schema_changes(schema, champion.schema if champion else None)
    return Profiled(seen, schema, tuple(changes), num_new)


def profile_units(
    store: Store,
    cluster: str,
    snapshot: Snapshot,
    time: str | None,
    on_done: Callable[[int, int], None] | None = None,
) -> tuple[Profile, int]:
    """Return the profile of a snapshot, and in how many of its files something was not profiled yet.

    Only what is new is read, and only the nodes of the tree that hold something new are merged.
    """
    units = {profile_key(unit, time): unit for unit in snapshot.units}
    levels = levels_of([profile_key(unit, time) for unit in snapshot.units])
    missing, unknown = missing_of(Cache(store, "profiles"), levels)
    new = [unit for key, unit in units.items() if key in unknown]
    if new:
        jobs = [(store, order, time) for order in work_orders(new)]
        run_on_workers(client_of(cluster), profile_job, jobs, on_done=on_done)
    for nodes in missing:
        merge_nodes(store, cluster, nodes)
    (root,) = levels[-1]
    seen = Cache(store, "profiles").get(root.key, PROFILES)
    num_new = len({unit.path for unit in snapshot.units if profile_key(unit, time) in unknown})
    return seen, num_new


def merge_nodes(store: Store, cluster: str, nodes: list[Node]) -> None:
    """Merge nodes of one level; many of them on the workers."""
    jobs = [(store, node) for node in nodes]
    if len(jobs) > MAX_MERGED_HERE:
        run_on_workers(client_of(cluster), merge_job, jobs)
    else:
        for job in jobs:
            merge_job(job)


def check_new_files(store: Store, snapshot: Snapshot, time: str | None, champion: Trained) -> None:
    """Raise an InputError that names the first new file which lacks a column that the champion needs."""
    needed = [column.name for column in champion.schema.inputs]
    cache = Cache(store, "profiles")
    for file in snapshot.files:
        if file.key in champion.file_keys:
            continue
        missing = needed
        for unit in file.units:  # a line of JSON may lack a column that others have
            missing = [name for name in missing if name not in cache.get(profile_key(unit, time), PROFILES).columns]
            if not missing:
                break
        if missing:
            raise InputError(
                f"A new file keeps the columns of the champion, but got none called "
                f"{', '.join(map(repr, missing))} in {file.path}. "
                "Mend the file, or start a new model under another model.name."
            )


def check_alike(seen: Profile, snapshot: Snapshot, config: DataConfig) -> None:
    """Raise an InputError that names a column which holds numbers in one file and texts in another, and both files."""
    path_of = {unit.key: unit.path for unit in snapshot.units}
    for name, column in seen.columns.items():
        is_set = name in config.kinds or name in config.ignore
        files = [path_of.get(column.examples.get(kind, "")) for kind in ("number", "text")]
        if is_set or None in files or files[0] == files[1]:
            continue
        raise InputError(
            f"A column holds values of one type in every file, but got column={name!r} with numbers alone in "
            f"{files[0]} and none in {files[1]}. "
            f'Mend one of the files, or say what they are: data.kinds."{name}" = "categorical".'
        )
