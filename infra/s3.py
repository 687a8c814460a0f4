"""S3 through boto3: the one client for stored objects and for sources, with its retries, its memory and its errors.

Boto3 is imported, and a connection opened, by the first request. What a person must change (a bucket's name, keys, a
policy) is an InputError; what may go away by itself is a RunError.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from typing import Any, TypeVar

from infra.errors import InputError, RunError

Answer = TypeVar("Answer")

CONNECTIONS = 32
ATTEMPTS = 8
"""Requests in all. Botocore's pauses before the others are random, up to 1, 2, 4 ... 20 s after SlowDown (71 s in all
at most), and up to 0.05, 0.1, 0.2 ... 3.2 s after a 5xx or a broken connection (6 s)."""
RETRY_MODE = "adaptive"
"""The standard mode, and a client that slows down as a whole when S3 says SlowDown. Without that its threads use up
the retries that a client has, 100 after SlowDown: at 20 requests per second a third of 600 writes failed."""
BODY_ATTEMPTS = 5
"""How often a body is read that breaks off or is not what was stored: Botocore's retries end where a body begins."""
BODY_PAUSE_SECONDS = 0.2
CONNECT_SECONDS = 5.0
READ_SECONDS = 30.0
"""How long an answer, or the next bytes of one, may take."""
PART_BYTES = 16 << 20
"""Larger objects are sent and fetched in parts of this size; S3 allows 10,000 of them."""
PARTS_AT_ONCE = 4
"""Of one object; a worker with two threads holds at most eight."""
PIECE_BYTES = 1 << 18
QUEUED_PIECES = 64
"""Pieces that are downloaded and not on disk yet: 16 MiB."""

REFUSED_KEYS = (
    *("InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "ExpiredToken", "ExpiredTokenException"),
    *("TokenRefreshRequired", "RequestTimeTooSkewed", "UnrecognizedClientException", "400"),
)
"""With 400 S3 answers a HEAD, whose answer has no body to say more."""
DENIED = ("AccessDenied", "AllAccessDisabled", "AccountProblem", "403")
ELSEWHERE = ("PermanentRedirect", "AuthorizationHeaderMalformed", "301")
PERMISSIONS = {
    **dict.fromkeys(("ListObjectsV2", "HeadBucket"), "s3:ListBucket"),
    **dict.fromkeys(("GetObject", "HeadObject"), "s3:GetObject"),
    **dict.fromkeys(("PutObject", "CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload"), "s3:PutObject"),
    **{"DeleteObject": "s3:DeleteObject", "AbortMultipartUpload": "s3:AbortMultipartUpload"},
    **{"ListMultipartUploads": "s3:ListBucketMultipartUploads", "ListParts": "s3:ListMultipartUploadParts"},
}
"""What a policy must allow for a request."""

_importing = threading.Lock()
_opening = threading.Lock()
_connections: dict[tuple[Any, ...], _Opened] = {}


def boto(module: str) -> Any:
    """Return a module of boto3's or botocore's, imported now.

    Raises:
        InputError: boto3 is not installed.
    """
    try:
        # Two threads of a worker that import boto3 at once can see half of it.
        with _importing:
            import_module("boto3")
            return import_module(module)
    except ModuleNotFoundError as error:
        raise InputError(
            f"A root or a source on S3 needs boto3, but got a missing module={error.name}. "
            "Install the extra: pip install 'evergreen[s3]'."
        ) from error


@dataclass(frozen=True)
class _Opened:
    session: Any
    client: Any


def client() -> Any:
    """Return the client of this process, opened by the first call; a change of the AWS variables opens another one.

    Threads share it, so that all of them slow down when S3 asks one to.
    """
    return _opened().client


def credentials() -> Any:
    """Return the credentials of the client, valid now: access_key, secret_key and token."""
    found = _opened().session.get_credentials()
    if found is None:
        raise boto("botocore.exceptions").NoCredentialsError
    return found.get_frozen_credentials()


def _opened() -> _Opened:
    key = (os.getpid(), *sorted(item for item in os.environ.items() if item[0].startswith("AWS_")))
    with _opening:
        if key not in _connections:
            _connections[key] = _open()
        return _connections[key]


def _open() -> _Opened:
    config = boto("botocore.config").Config(
        max_pool_connections=CONNECTIONS,
        connect_timeout=CONNECT_SECONDS,
        read_timeout=READ_SECONDS,
        retries={"mode": RETRY_MODE, "total_max_attempts": ATTEMPTS},
    )
    # A session of its own: boto3's default one is not safe to use from several threads.
    session = boto("boto3.session").Session()
    return _Opened(session, session.client("s3", config=config))


@contextmanager
def transfers() -> Iterator[Any]:
    """Yield what moves files in parts, in bounded memory."""
    module = boto("boto3.s3.transfer")
    config = module.TransferConfig(
        multipart_threshold=PART_BYTES,
        multipart_chunksize=PART_BYTES,
        max_concurrency=PARTS_AT_ONCE,
        num_download_attempts=BODY_ATTEMPTS,
        max_io_queue=QUEUED_PIECES,
        io_chunksize=PIECE_BYTES,
        preferred_transfer_client="classic",  # the other one is a second client, with settings of its own
    )
    with module.create_transfer_manager(client(), config) as manager:
        yield manager


def read_again(
    ask: Callable[[], Any], take: Callable[[Any], Answer], is_whole: Callable[[Answer], bool] = lambda _: True
) -> Answer:
    """Return what `take` makes of the body that `ask` requests; both again when it breaks off or is not whole.

    Errors of the request itself are raised at once, because Botocore has repeated it already. After the last attempt
    an answer is returned as it is, and an error raised.
    """
    exceptions = boto("botocore.exceptions")
    broken = (
        *(exceptions.IncompleteReadError, exceptions.ResponseStreamingError, exceptions.ReadTimeoutError),
        *(exceptions.FlexibleChecksumError, exceptions.ConnectionClosedError, ConnectionError, TimeoutError),
    )
    for attempt in range(1, BODY_ATTEMPTS):
        body = ask()
        with suppress(*broken):
            answer = take(body)
            if is_whole(answer):
                return answer
        time.sleep(random.uniform(0, BODY_PAUSE_SECONDS * 2**attempt))
    return take(ask())


@contextmanager
def answering(uri: str, setting: str, *expected: str) -> Iterator[None]:
    """Swallow the expected error codes of S3, and explain the other errors.

    Args:
        uri: what was asked for.
        setting: where its address was given, such as data.source.
        expected: codes that are an answer.

    Raises:
        InputError: no credentials, no access, no such bucket: somebody must change something.
        RunError: no answer, or one that is broken.
    """
    client_error = boto("botocore.exceptions").ClientError
    others = (
        boto("botocore.exceptions").BotoCoreError,
        boto("boto3.exceptions").Boto3Error,
        boto("s3transfer.exceptions").RetriesExceededError,
        boto("s3transfer.exceptions").S3DownloadFailedError,
        ConnectionError,
        TimeoutError,
    )
    try:
        yield
    except client_error as error:
        if error.response["Error"]["Code"] not in expected:
            raise _refusal(error, uri, setting) from error
    except others as error:
        raise _no_answer(error, uri, setting) from error


def _refusal(error: Any, uri: str, setting: str) -> InputError | RunError:
    """Explain an answer that is an error."""
    code, request = error.response["Error"]["Code"], error.operation_name
    got = f"but got error={code} on {request} of {uri}"
    if code == "NoSuchBucket" or (code, request) == ("404", "HeadBucket"):
        bucket = uri.removeprefix("s3://").partition("/")[0]
        return InputError(f"An S3 bucket must exist, but got bucket={bucket} ({uri}). Make it, or correct {setting}.")
    if code == "InvalidBucketName":
        return InputError(f"An S3 address must be valid, {got}. Correct {setting}.")
    if code in REFUSED_KEYS:
        return InputError(
            f"S3 must know the credentials, {got}. "
            "Renew AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or log in again, and see that the clock is right."
        )
    if code in DENIED:
        return InputError(
            f"S3 must allow what is asked for, {got}. "
            f"Allow these credentials {PERMISSIONS.get(request, 'it')} there, or correct {setting}."
        )
    if code in ELSEWHERE:
        return InputError(
            f"A bucket must be in the region that is asked, {got}. Set AWS_DEFAULT_REGION to the bucket's region."
        )
    if code == "InvalidObjectState":
        return InputError(f"An S3 object must not be archived, {got}. Restore it, or leave it out of {setting}.")
    attempts = error.response.get("ResponseMetadata", {}).get("RetryAttempts", 0) + 1
    return RunError(
        f"S3 must answer, {got} after {attempts} attempts. Start the run again; it goes on from what is done."
    )


def _no_answer(error: Any, uri: str, setting: str) -> InputError | RunError:
    """Explain why there is no answer."""
    exceptions = boto("botocore.exceptions")
    set_them = "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or give this machine a role."
    if isinstance(error, exceptions.NoCredentialsError):
        return InputError(f"S3 needs credentials, but got none for {uri}. {set_them}")
    if isinstance(error, exceptions.PartialCredentialsError):
        return InputError(f"S3 needs whole credentials, but got none for {uri} ({error}). {set_them}")
    if isinstance(error, exceptions.ProfileNotFound):
        return InputError(
            f"A profile must be in the AWS configuration, but got none for {uri} ({error}). "
            "Correct AWS_PROFILE, or leave it out."
        )
    if isinstance(error, (exceptions.ParamValidationError, exceptions.InvalidEndpointConfigurationError)):
        text = " ".join(str(error).split())
        return InputError(f"An S3 address must be valid, but got {uri} ({text}). Correct {setting}.")
    return RunError(
        f"S3 must answer, but got no answer for {uri} ({error}). "
        "Check the network, AWS_ENDPOINT_URL and AWS_DEFAULT_REGION, and start the run again."
    )
