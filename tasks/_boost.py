"""Boosting in chunks of rounds, each with a seed of its own, so that one that goes on is the one that never stopped.

XGBoost draws rows and features from a stream whose place is no part of a model, so a booster that is loaded draws
others than the one that went on. Here every chunk begins a new stream, seeded with the training's seed plus the
chunk's number: at the border of a chunk a model is all that there is to know. Byte for byte the same model as
`xgb.train` chunk by chunk, which computes the scores of all rows anew each time, a third more work; here the booster
stays, and only what holds the stream is made anew.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from io import StringIO
from typing import Any

import numpy as np
import xgboost as xgb
from xgboost.collective import CommunicatorContext
from xgboost.core import _LIB, _register_log_callback
from xgboost.tracker import RabitTracker

from infra.member import Member, PeerLostError, PortTakenError

CLOSE_SECONDS = 5
COLLECTIVE_SECONDS = 3600
"""Longer than the slowest member reads its shards; who hangs is found by its heartbeat."""
NUM_RETRIES = 3
COLLECTIVE_WORDS = ("collective", "rabit", "allreduce", "allgather", "broadcast", "socket", "tracker", "connection")
"""What is in the library's message when another member can't be reached."""


class Tracker:
    """What tells the members of an XGBoost collective of one another; it listens beside Dask's scheduler.

    Inside a member's process it may deadlock with the collective there when another member dies.
    """

    def __init__(self, num_members: int, host: str, port: int) -> None:
        """Listen.

        Raises:
            PortTakenError: something listens there.
        """
        try:
            self._tracker = RabitTracker(num_members, host_ip=host, port=port, sortby="task")
            self._tracker.start()
        except xgb.core.XGBoostError as error:
            raise PortTakenError(
                f"The members of a gang meet at a port that is free, but got cluster.training_port={port} on {host}, "
                "where nothing can listen. Set another one, or leave it out."
            ) from error

    @property
    def told(self) -> dict[str, Any]:
        """Return what `xgboost.collective` must know."""
        return self._tracker.worker_args()

    def close(self) -> None:
        """Stop listening; those who are still there are waited for."""
        with suppress(xgb.core.XGBoostError, ValueError):
            self._tracker.wait_for(timeout=CLOSE_SECONDS)
        with suppress(xgb.core.XGBoostError):
            self._tracker.free()


@contextmanager
def communicator(member: Member) -> Iterator[None]:
    """Join the members' collective; one member needs none.

    Raises:
        PeerLostError: another member is gone.
    """
    if member.num_members == 1:
        yield
        return
    context = CommunicatorContext(
        **member.meeting,
        dmlc_task_id=f"{member.rank:05d}",
        dmlc_timeout=COLLECTIVE_SECONDS,
        dmlc_retry=NUM_RETRIES,
    )
    try:
        with ExitStack() as joined:
            with redirect_stdout(StringIO()):  # it prints the rank, whatever its verbosity
                _register_log_callback(_LIB)  # of this thread; without it C++ prints by itself
                joined.enter_context(context)
            yield
    except xgb.core.XGBoostError as error:
        text = str(error)
        if any(word in text.lower() for word in COLLECTIVE_WORDS):
            raise PeerLostError(
                f"The members of a gang must reach one another, but got rank={member.rank} of {member.num_members} "
                f"alone ({reason_of(text)}). See the workers' logs."
            ) from error
        raise


def reason_of(text: str) -> str:
    """Return what an error of the library says, without the places in its code.

    >>> reason_of(chr(10).join(["[03:41] /a/result.cc:83: [comm.cc:96]:", "- [loop.cc:3|0]: Reset.", "Stack trace:"]))
    'Reset.'
    """
    lines = text.partition("Stack trace")[0].strip().splitlines()
    return lines[-1].rpartition("]: ")[2].strip() if lines else ""


def total(member: Member, value: int) -> int:
    """Return the sum of all members' values."""
    if member.num_members == 1:
        return value
    return int(xgb.collective.allreduce(np.array([value], np.int64), xgb.collective.Op.SUM)[0])


def boosted(
    parameters: Mapping[str, Any],
    rows: xgb.DMatrix,
    others: Sequence[xgb.DMatrix],
    rounds: range,
    *,
    seed: int,
    chunk: int,
    model: bytes | None = None,
) -> Iterator[tuple[int, xgb.Booster]]:
    """Yield each round's number and the booster after it, which is the same object all the time.

    Args:
        parameters: of the library, without a seed.
        rows: what is learnt from.
        others: matrices whose scores are kept beside, for `losses`.
        rounds: which rounds; the first is 0 or the first of a chunk.
        seed: of the training.
        chunk: rounds of a chunk.
        model: where the rounds start from; None: from nothing.
    """
    assert rounds.start % chunk == 0, "a training goes on at the border of a chunk"
    given = {**parameters, "seed": seed + rounds.start // chunk}
    booster = xgb.Booster(given, cache=[rows, *others], model_file=bytearray(model) if model else None)
    for number in rounds:
        if number % chunk == 0 and number > rounds.start:
            begin_stream(booster, seed + number // chunk)
        booster.update(rows, number)
        yield number, booster


def begin_stream(booster: xgb.Booster, seed: int) -> None:
    """Have a booster draw rows and features from a new seed.

    A new seed alone is not enough: the tree builder holds a stream that it has begun. It is made anew when another
    way to build trees was set in between, which is seen when the configuration is read.
    """
    booster.set_param({"tree_method": "approx"})
    booster.save_config()
    booster.set_param({"tree_method": "hist", "seed": seed})


def losses(booster: xgb.Booster, named: Sequence[tuple[xgb.DMatrix, str]], number: int) -> dict[str, float]:
    """Return the loss by name of a matrix, after a round; of a gang, over the rows of all members."""
    _, *found = booster.eval_set(named, number).split("\t")
    values = [float(text.rpartition(":")[2]) for text in found]
    return dict(zip((name for _, name in named), values, strict=True))


def joined(base: xgb.Booster, added: xgb.Booster) -> xgb.Booster:
    """Return the trees of a booster, and after them those that were grown from its scores."""
    whole, more = (json.loads(bytes(booster.save_raw("json"))) for booster in (base, added))
    model, new = (one["learner"]["gradient_booster"]["model"] for one in (whole, more))
    num_trees = len(model["trees"])
    model["trees"] += [{**tree, "id": number} for number, tree in enumerate(new["trees"], num_trees)]
    model["tree_info"] += new["tree_info"]
    model["iteration_indptr"] += [num_trees + number for number in new["iteration_indptr"][1:]]
    model["gbtree_model_param"]["num_trees"] = str(len(model["trees"]))
    return xgb.Booster(model_file=bytearray(json.dumps(whole).encode()))


def best_round(curve: Sequence[float], base_loss: float | None = None) -> int:
    """Return the first round with the least loss; -1 if none is below that before the first round.

    Not-a-number is never the least.

    >>> best_round([0.5, 0.3, 0.3, float("nan"), 0.4])
    1
    >>> best_round([0.5, 0.3], base_loss=0.3), best_round([0.5, 0.2], base_loss=0.3)
    (-1, 1)
    """
    best = 0 if base_loss is None else -1
    for number, loss in enumerate(curve):
        if loss < (base_loss if best < 0 and base_loss is not None else curve[best]):
            best = number
    return best
