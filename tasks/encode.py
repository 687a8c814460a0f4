"""Encode: one shard per unit of the source files, for ever valid, with append-only category codes."""

import uuid
from collections.abc import Callable
from dataclasses import dataclass

from pydantic import TypeAdapter

from infra.bundle.schema import Schema
from infra.bundle.vocabulary import Vocabulary
from infra.clusters import client_of, run_on_workers
from infra.storage import Ref, Store, digest_bytes
from tasks._cache import Cache, key_of
from tasks._encode import Encoded, check_failures, extended_vocabulary, left_out
from tasks._jobs import SHARDS, encode_job, read_vocabulary
from tasks._profile import Profile
from tasks._readers import work_orders
from tasks._snapshot import DataConfig, Snapshot, SourceFile
from tasks.stage import Run, stage


@dataclass(frozen=True)
class VocabularyHead:
    """The newest vocabulary of a model, and the line that it belongs to.

    Codes of one line never change their meaning; a line that was lost starts anew under another name.
    """

    line: str
    number: int
    content: Ref


HEADS: TypeAdapter[VocabularyHead] = TypeAdapter(VocabularyHead)


@stage()
def encode(run: Run, snapshot: Snapshot, schema: Schema, seen: Profile, config: DataConfig) -> Encoded:
    """Append new categories to the vocabulary, and encode the units that have no shard yet."""
    encoded, paths = encode_units(
        run.store, run.model, run.cluster, snapshot, schema, seen, config, on_done=run.advance("encode")
    )
    vocabulary = read_vocabulary(run.store, encoded.vocabulary)
    for line in left_out(vocabulary, schema, seen, config.max_categories):
        run.reporter.noted(line)
    check_failures(encoded, config.tolerance, paths)
    return encoded


def encode_units(
    store: Store,
    model: str,
    cluster: str,
    snapshot: Snapshot,
    schema: Schema,
    seen: Profile,
    config: DataConfig,
    on_done: Callable[[int, int], None] | None = None,
) -> tuple[Encoded, list[str]]:
    """Return the shards of a snapshot, and the path of each one's file; only those that are not there are written."""
    head = extend_head(store, model, schema, seen, config)
    units = snapshot.units
    keys = {unit: shard_key(unit, schema, head.line) for unit in units}
    cache = Cache(store, "shards")
    known = {key: cache.find(key, SHARDS) for key in dict.fromkeys(keys.values())}
    new = {keys[unit]: unit for unit in units if known[keys[unit]] is None}
    if new:
        orders = work_orders(list(new.values()))
        jobs = [(store, order, schema, head.content, tuple(keys[unit] for unit in order)) for order in orders]
        for job, written in zip(
            jobs, run_on_workers(client_of(cluster), encode_job, jobs, on_done=on_done), strict=True
        ):
            known.update(zip(job[-1], written, strict=True))
    shards = tuple(shard for unit in units if (shard := known[keys[unit]]) is not None)
    num_new = len({unit.path for unit in units if keys[unit] in new})
    return Encoded(schema, head.content, shards, num_new), [unit.path for unit in units]


def shard_key(unit: SourceFile, schema: Schema, line: str) -> str:
    """Return the key of a unit's shard: its content, how rows are encoded, and the line of its codes."""
    return key_of(unit.key, schema.encoding(), line)


def extend_head(store: Store, model: str, schema: Schema, seen: Profile, config: DataConfig) -> VocabularyHead:
    """Return the model's vocabulary with the values of new rows appended.

    Heads are numbered and created only if absent: of two runs that append at once one looks again.
    """
    while True:
        head = read_head(store, model)
        known = Vocabulary.from_json(store.get(head.content).decode()) if head else Vocabulary()
        extended = extended_vocabulary(known, schema, seen, config.max_categories, config.min_category_rows)
        if head and extended == known:
            return head
        payload = extended.to_json().encode()
        fresh = VocabularyHead(
            line=head.line if head else uuid.uuid4().hex[:12],
            number=head.number + 1 if head else 1,
            content=store.put(f"vocabularies/{model}/content/{digest_bytes(payload)[:32]}.json", payload),
        )
        try:
            store.create(f"vocabularies/{model}/head-{fresh.number:08d}.json", HEADS.dump_json(fresh))
        except FileExistsError:
            continue
        return fresh


def read_head(store: Store, model: str) -> VocabularyHead | None:
    """Return the newest vocabulary of a model, if it has one."""
    heads = store.list(f"vocabularies/{model}/head-")
    return HEADS.validate_json(store.get(heads[-1])) if heads else None
