"""Score files with a bundle, unit by unit, and join the parts into one output."""

from __future__ import annotations

import functools
import json
import os
import tempfile
import uuid
from dataclasses import asdict
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from infra.bundle.model import Bundle
from infra.bundle.schema import Schema
from infra.errors import InputError
from infra.storage import Ref, Store
from tasks._candidate import BundleRef, load_bundle
from tasks._readers import read_file
from tasks._snapshot import SourceFile
from tasks._typed import Typed, read_as, typed_columns

VERSION_COLUMN = "model_version"
SUFFIXES = (".parquet", ".csv")
BATCH_ROWS = 65_536
"""Rows that are encoded and scored at once, however many a unit has; each batch uses all threads of the worker."""
TYPES_KEY = "evergreen.types"
"""Where a part says which of its texts are read as something else in an output that has types."""
ARROW_TYPES = {"integer": pa.int64(), "number": pa.float64(), "boolean": pa.bool_()}


def check_output(output: Path) -> None:
    """Raise an InputError unless the output can be written in a format that is named by its suffix."""
    if output.suffix not in SUFFIXES:
        raise InputError(f"An output ends in {' or '.join(SUFFIXES)}, but got {output}. Rename it.")
    if not output.parent.is_dir():
        raise InputError(
            f"An output is written into a folder that exists, but got {output}. Make {output.parent} first."
        )


def predict_file(
    store: Store, file: SourceFile, bundle: BundleRef, version: str, name: str, rows: pl.DataFrame | None = None
) -> Ref:
    """Write the rows of a unit with the answers beside them; runs on a worker.

    The texts of a CSV file stay as they are; which of them are more than texts is noted for `join_parts`.
    """
    model = loaded(store, bundle)
    rows = read_file(file) if rows is None else rows
    check_inputs(rows, model.schema, file.path)
    answers = pl.concat([model.predict(rows[start : start + BATCH_ROWS]) for start in starts_of(rows.height)])
    answers = answers.with_columns(pl.lit(version).alias(VERSION_COLUMN))
    clashes = [column for column in answers.columns if column in rows.columns]
    kept = rows.drop(clashes)
    types = typed_columns(kept, model.schema) if file.format == "csv" else {}
    whole = pl.concat([kept, answers], how="horizontal")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "part.parquet"
        whole.write_parquet(path, metadata={TYPES_KEY: noted(types)})
        return store.put_file(name, path)


@functools.lru_cache(maxsize=1)
def loaded(store: Store, bundle: BundleRef) -> Bundle:
    """Return a stored bundle, read once for all units of a run."""
    return load_bundle(store, bundle)


def starts_of(num_rows: int) -> range:
    """Return where batches begin; without any row there is one empty batch.

    >>> list(starts_of(0)), len(starts_of(2 * BATCH_ROWS + 1))
    ([0], 3)
    """
    return range(0, max(1, num_rows), BATCH_ROWS)


def check_inputs(rows: pl.DataFrame, schema: Schema, path: str) -> None:
    """Raise an InputError that names the file and the columns that the model needs and does not find."""
    missing = [column.name for column in schema.inputs if column.name not in rows.columns]
    if missing:
        raise InputError(
            f"Rows to score need every input column, but got none called {', '.join(map(repr, missing))} in {path}. "
            "Mend the file."
        )


def join_parts(store: Store, parts: list[Ref], output: Path) -> int:
    """Write all parts into one file, which appears when it is whole; return its number of rows.

    In Parquet the columns have types, those of CSV files too where every part can be read so without loss. In CSV
    every text stays as it was written.
    """
    temporary = output.with_name(f".{output.name}.{uuid.uuid4().hex}.tmp")
    num_rows = 0
    try:
        has_types = output.suffix == ".parquet"
        footers = [pa.parquet.read_metadata(store.local(part)) for part in parts]
        types = [types_of(footer) if has_types else {} for footer in footers]
        schema = common_schema(
            [with_types(footer.schema.to_arrow_schema(), known) for footer, known in zip(footers, types, strict=True)]
        )
        writer = (pa.parquet.ParquetWriter if has_types else pa.csv.CSVWriter)(temporary, schema)
        with writer:
            for part, known in zip(parts, types, strict=True):
                for batch in pa.parquet.ParquetFile(store.local(part)).iter_batches():
                    table = pa.Table.from_batches([batch])
                    writer.write_table(_conform(table, schema, known))
                    num_rows += table.num_rows
        os.replace(temporary, output)
    finally:
        temporary.unlink(missing_ok=True)
    return num_rows


def noted(types: dict[str, Typed]) -> str:
    """Return types as a part's note of them."""
    return json.dumps({column: asdict(one) for column, one in types.items()})


def types_of(footer: pa.parquet.FileMetaData) -> dict[str, Typed]:
    """Return which texts of a part are more than texts."""
    noted = json.loads((footer.metadata or {}).get(TYPES_KEY.encode(), b"{}"))
    return {column: Typed(**one) for column, one in noted.items()}


def with_types(schema: pa.Schema, types: dict[str, Typed]) -> pa.Schema:
    """Return a part's columns with the types that its texts are read as."""
    return pa.schema(
        [field.with_type(arrow_type(types[field.name])) if field.name in types else field for field in schema]
    )


def arrow_type(typed: Typed) -> pa.DataType:
    """Return the Arrow type of what a text is read as."""
    if typed.date_format is None:
        return ARROW_TYPES[typed.type]
    return pa.timestamp("us") if "%H" in typed.date_format else pa.date32()


def common_schema(schemas: list[pa.Schema]) -> pa.Schema:
    """Return the columns of all parts, each of a type that holds every part's; text where nothing else does."""
    fields: dict[str, pa.Field] = {}
    for field in (field for schema in schemas for field in schema):
        known = fields.get(field.name, field)
        try:
            both = pa.unify_schemas([pa.schema([known]), pa.schema([field])], promote_options="permissive")
            fields[field.name] = both.field(0)
        except pa.ArrowTypeError:
            fields[field.name] = pa.field(field.name, pa.large_string())
    return pa.schema(list(fields.values()))


def _conform(table: pa.Table, schema: pa.Schema, types: dict[str, Typed]) -> pa.Table:
    """Return a part's rows with the columns of all parts; those that it lacks are null."""
    names = set(table.column_names)
    columns = []
    for field in schema:
        if field.name not in names:
            columns.append(pa.nulls(table.num_rows, field.type))
            continue
        values = table.column(field.name)
        if field.name in types and field.type != values.type:
            values = read_as(pl.Series(values), types[field.name]).to_arrow()
        columns.append(values.cast(field.type))
    return pa.table(columns, schema=schema)
