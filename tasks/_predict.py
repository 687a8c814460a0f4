"""Score files with a bundle, file by file, and join the parts into one output."""

from __future__ import annotations

import os
import tempfile
import uuid
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from infra.bundle.schema import Schema
from infra.errors import InputError
from infra.storage import Ref, Store
from tasks._candidate import BundleRef, load_bundle
from tasks._readers import read_file
from tasks._snapshot import SourceFile

VERSION_COLUMN = "model_version"
SUFFIXES = (".parquet", ".csv")


def check_output(output: Path) -> None:
    """Raise an InputError unless the output can be written in a format that is named by its suffix."""
    if output.suffix not in SUFFIXES:
        raise InputError(f"An output ends in {' or '.join(SUFFIXES)}, but got {output}. Rename it.")
    if not output.parent.is_dir():
        raise InputError(
            f"An output is written into a folder that exists, but got {output}. Make {output.parent} first."
        )


def predict_file(store: Store, file: SourceFile, bundle: BundleRef, version: str, name: str) -> Ref:
    """Write a file's rows with the answers beside them; runs on a worker."""
    model = load_bundle(store, bundle)
    rows = read_file(file)
    check_inputs(rows, model.schema, file.path)
    answers = model.predict(rows).with_columns(pl.lit(version).alias(VERSION_COLUMN))
    clashes = [column for column in answers.columns if column in rows.columns]
    whole = pl.concat([rows.drop(clashes), answers], how="horizontal")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "part.parquet"
        whole.write_parquet(path)
        return store.put_file(name, path)


def check_inputs(rows: pl.DataFrame, schema: Schema, path: str) -> None:
    """Raise an InputError that names the file and the columns that the model needs and does not find."""
    missing = [column.name for column in schema.inputs if column.name not in rows.columns]
    if missing:
        raise InputError(
            f"Rows to score need every input column, but got none called {', '.join(map(repr, missing))} in {path}. "
            "Mend the file."
        )


def join_parts(store: Store, parts: list[Ref], output: Path) -> int:
    """Write all parts into one file, which appears when it is whole; return its number of rows."""
    temporary = output.with_name(f".{output.name}.{uuid.uuid4().hex}.tmp")
    num_rows = 0
    try:
        schema = common_schema([pa.parquet.read_schema(store.local(part)) for part in parts])
        writer = (pa.parquet.ParquetWriter if output.suffix == ".parquet" else pa.csv.CSVWriter)(temporary, schema)
        with writer:
            for part in parts:
                for batch in pa.parquet.ParquetFile(store.local(part)).iter_batches():
                    table = pa.Table.from_batches([batch])
                    writer.write_table(_conform(table, schema))
                    num_rows += table.num_rows
        os.replace(temporary, output)
    finally:
        temporary.unlink(missing_ok=True)
    return num_rows


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


def _conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return a part's rows with the columns of all parts; those that it lacks are null."""
    names = set(table.column_names)
    columns = [
        table.column(field.name).cast(field.type) if field.name in names else pa.nulls(table.num_rows, field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)
