"""An MLflow client that says in one line when its server is gone, and says so at once from then on.

MLflow repeats a request that gets no answer for half a minute, which a server that is started again survives, and
then raises an error of its own, to be told by its words alone. What ends a run asks again: it is not kept waiting.
"""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit, urlunsplit

from infra.errors import RunError

if TYPE_CHECKING:
    from mlflow import MlflowClient

GONE = re.compile(r"API request to .* failed with (?:timeout )?exception|failed with error code 50[234]\b", re.DOTALL)


def watched(client: MlflowClient, uri: str) -> MlflowClient:
    """Return a client whose calls raise a RunError when its server has gone; that of a database as it is."""
    return cast("MlflowClient", _Watched(client, uri)) if urlsplit(uri).scheme in ("http", "https") else client


class _Watched:
    """All that a client is, with its calls watched."""

    def __init__(self, client: MlflowClient, uri: str) -> None:
        self._client = client
        self._uri = uri
        self._is_gone = False

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._client, name)
        return functools.partial(self._call, call) if callable(call) else call

    def _call(self, call: Any, *args: Any, **kwargs: Any) -> Any:
        from mlflow.exceptions import MlflowException
        from requests.exceptions import ConnectionError, Timeout

        if self._is_gone:
            raise gone_error(self._uri)
        try:
            return call(*args, **kwargs)
        except (ConnectionError, Timeout) as error:
            self._is_gone = True
            raise gone_error(self._uri) from error
        except MlflowException as error:
            if not GONE.search(error.message):
                raise
            self._is_gone = True
            raise gone_error(self._uri) from error


def gone_error(uri: str) -> RunError:
    """Return the error for a server that does not answer any more."""
    return RunError(
        f"The MLflow server must answer until a run has ended, but got MLFLOW_TRACKING_URI={without_password(uri)}, "
        "which has stopped answering. Start that server and run again: the run goes on from what is done."
    )


def without_password(uri: str) -> str:
    """Return an address that may be shown.

    >>> without_password("https://ann:secret@mlflow.example.com:5000/base")
    'https://ann:***@mlflow.example.com:5000/base'
    """
    parts = urlsplit(uri)
    if parts.password is None:
        return uri
    return urlunsplit(parts._replace(netloc=parts.netloc.replace(f":{parts.password}@", ":***@")))
