"""The process behind `evergreen serve`."""

from __future__ import annotations

POLL_SECONDS = 1.0
MAX_BODY_BYTES = 16 << 20


def serve(
    root: str,
    model: str,
    host: str = "127.0.0.1",
    port: int = 8080,
    poll_seconds: float = POLL_SECONDS,
    max_body_bytes: int = MAX_BODY_BYTES,
) -> None:
    """Answer requests with a model's released version until SIGTERM or SIGINT; requests in flight are finished.

    Args:
        root: where the store is.
        model: its name.
        host: the address to listen on.
        port: 0 for a free one; the line that is printed when the server is ready names it.
        poll_seconds: between two looks for another released version.
        max_body_bytes: the largest request that is answered.

    Raises:
        InputError: nothing is released, the port is taken, or the host is not this machine.
        RunError: what is released cannot answer, or the store does not.
    """
    from infra.serving.process import run

    run(root, model, host, port, poll_seconds, max_body_bytes)
