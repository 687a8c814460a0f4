"""One Postgres database for both servers: Prefect in its public schema, MLflow in a schema of its own.

Both keep their version in a table called alembic_version, so that they cannot share a schema.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote, urlsplit, urlunsplit

from infra.errors import InputError, RunError

MLFLOW_SCHEMA = "mlflow"
SCHEMES = ("postgresql", "postgres")


@dataclass(frozen=True)
class Database:
    """The addresses of one database, each as its reader wants it. They hold the password."""

    prefect: str
    mlflow: str
    shown: str
    """Without the password."""


def postgres(url: str) -> Database:
    """Return the addresses of a Postgres database.

    Raises:
        InputError: it is no address of a Postgres database.

    >>> found = postgres("postgresql://me:secret@db:5432/evergreen")
    >>> found.prefect
    'postgresql+asyncpg://me:secret@db:5432/evergreen'
    >>> found.mlflow
    'postgresql+psycopg://me:secret@db:5432/evergreen?options=-csearch_path%3Dmlflow'
    >>> found.shown
    'postgresql://me@db:5432/evergreen'
    """
    parts = urlsplit(url)
    if parts.scheme not in SCHEMES or not parts.hostname or len(parts.path) < 2:
        raise InputError(
            "A database is an address such as postgresql://user:password@host:5432/evergreen, but got "
            f"--database {_without_password(url)}. Correct it, or leave --database out to use SQLite."
        )
    if parts.query:
        raise InputError(
            f"A database address has no options, but got ?{parts.query} in --database. "
            "Leave them out; PGSSLMODE and its like work from the environment."
        )
    options = f"options={quote(f'-csearch_path={MLFLOW_SCHEMA}', safe='-')}"
    return Database(
        prefect=urlunsplit(("postgresql+asyncpg", parts.netloc, parts.path, "", "")),
        mlflow=urlunsplit(("postgresql+psycopg", parts.netloc, parts.path, options, "")),
        shown=_without_password(url),
    )


def prepare(url: str) -> Database:
    """Return the addresses of a database that answers, with MLflow's schema in it.

    Raises:
        InputError: the address is wrong, or the driver is not installed.
        RunError: the database does not answer, or its user may not create a schema.
    """
    database = postgres(url)
    try:
        import psycopg
    except ImportError as error:
        raise InputError(
            "A Postgres database needs its driver, but got none. Install it: pip install 'evergreen[postgres]'."
        ) from error
    try:
        with psycopg.connect(urlunsplit(urlsplit(url)._replace(scheme="postgresql")), connect_timeout=10) as connection:
            connection.execute(f"CREATE SCHEMA IF NOT EXISTS {MLFLOW_SCHEMA}")
    except psycopg.Error as error:
        raise RunError(
            f"A database must answer and let its user create the schema {MLFLOW_SCHEMA}, but got --database "
            f"{database.shown} ({' '.join(str(error).split())}). Start it, correct the address, or grant the right."
        ) from error
    return database


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    if parts.password is None:
        return url
    return urlunsplit(parts._replace(netloc=parts.netloc.replace(f":{parts.password}@", "@")))
