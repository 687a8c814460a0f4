"""What a worker process of this machine does when it starts and ends: a preload of Dask's."""

import gc

import infra.lean_xgboost  # noqa: F401


def dask_teardown(_worker: object) -> None:
    """End without a last look of the garbage collector at every object, which takes a second or two."""
    gc.freeze()
