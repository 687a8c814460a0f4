"""Encode: one shard per source file, for ever valid, with append-only category codes."""

import uuid
from dataclasses import dataclass

from pydantic import TypeAdapter

from infra.bundle.schema import Schema
from infra.bundle.vocabulary import Vocabulary
from infra.clusters import client_of, run_on_workers
from infra.storage import Ref, Store, digest_bytes
from tasks._cache import Cache, key_of
from tasks._encode import Encoded, Shard, check_failures, extended_vocabulary
from tasks._jobs import SHARDS, encode_job
from tasks._profile import Profile
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
    """Append new categories to the vocabulary, and encode the files that have no shard yet."""
    head = extend_head(run.store, run.model, schema, seen)
    cache = Cache(run.store, "shards")
    keys = [shard_key(file, schema, head.line) for file in snapshot.files]
    known: dict[str, Shard | None] = {key: cache.find(key, SHARDS) for key in keys}
    new = list({key: file for key, file in zip(keys, snapshot.files, strict=True) if known[key] is None}.items())
    if new:
        jobs = [(run.store, file, schema, head.content, key) for key, file in new]
        for (key, _), shard in zip(
            new, run_on_workers(client_of(run.cluster), encode_job, jobs, on_done=run.advance("encode")), strict=True
        ):
            known[key] = shard
    shards = tuple(found for key in keys if (found := known[key]) is not None)
    encoded = Encoded(schema, head.content, shards, num_new=len(new))
    check_failures(encoded, config.tolerance, [file.path for file in snapshot.files])
    return encoded


def shard_key(file: SourceFile, schema: Schema, line: str) -> str:
    """Return the key of a file's shard: its content, how rows are encoded, and the line of its codes."""
    return key_of(file.key, schema.encoding(), line)


def extend_head(store: Store, model: str, schema: Schema, seen: Profile) -> VocabularyHead:
    """Return the model's vocabulary with the values of new rows appended.

    Heads are numbered and created only if absent: of two runs that append at once one looks again.
    """
    while True:
        head = read_head(store, model)
        known = Vocabulary.from_json(store.get(head.content).decode()) if head else Vocabulary()
        extended = extended_vocabulary(known, schema, seen)
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
