"""Where and how a training runs: the cheapest of all ways (`tasks._ways`) that fits, or a refusal with ways out.

Vertical first, then horizontal: one worker in memory, unless a gang is clearly faster or the only one that fits;
pages on disk where no matrix fits. A sample is proposed and never taken silently.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from infra.errors import InputError
from tasks._costs import MIB, Workload
from tasks._outcomes import Outcome, error_text
from tasks._plans import MEMORY_SHARE, Machine, Plan, PlanConfig, size_text
from tasks._ways import GPU_SHARE, alternatives, corrected, fits, sampled

__all__ = [
    "Machine",
    "Outcome",
    "Plan",
    "PlanConfig",
    "Workload",
    "alternatives",
    "corrected",
    "error_text",
    "make_plan",
]

CLEARLY_FASTER = 1.3
"""So many times as fast must a gang be to be preferred to one worker."""
NEARLY_AS_FAST = 1.1
"""A smaller gang is preferred to one that is not faster than this."""
NUM_WAYS_OUT = 3
MAX_TIMES = 8
"""So many times the memory or the workers are proposed at most."""
MEMORY_STEP = 256 * MIB
MIN_SAMPLE_ROWS = 1000
FEWER_BINS = (256, 128, 64, 32)
MIN_DEPTH = 3


def make_plan(
    workload: Workload, machines: Sequence[Machine], config: PlanConfig, outcomes: Sequence[Outcome] = ()
) -> Plan:
    """Return the cheapest plan that fits.

    Raises:
        InputError: the configuration asks for workers or a GPU that are not there, or no plan fits.
    """
    plans = [plan for plan in alternatives(workload, machines, config, outcomes) if plan.share == 1]
    fitting = [plan for plan in plans if plan.is_fitting]
    if not fitting:
        raise refusal(workload, machines, config, outcomes, plans)
    best = {device: _best([plan for plan in fitting if plan.device == device]) for device in ("cpu", "cuda")}
    cpu, cuda = best["cpu"], best["cuda"]
    chosen = cuda if cpu is None or (cuda and cuda.predicted_seconds < cpu.predicted_seconds) else cpu
    assert chosen is not None
    return replace(chosen, why=_why(chosen, plans, config))


def _best(plans: Sequence[Plan]) -> Plan | None:
    """Return the plan to prefer among those of one device that fit: in memory, and with few members."""
    pool = [plan for plan in plans if not plan.is_external] or list(plans)
    if not pool:
        return None
    single = min((plan for plan in pool if plan.members == 1), key=lambda plan: plan.predicted_seconds, default=None)
    gang = min((plan for plan in pool if plan.members > 1), key=lambda plan: plan.predicted_seconds, default=None)
    if gang is None or (single and single.predicted_seconds <= CLEARLY_FASTER * gang.predicted_seconds):
        return single
    bound = NEARLY_AS_FAST * gang.predicted_seconds
    return min((p for p in pool if p.members > 1 and p.predicted_seconds <= bound), key=lambda plan: plan.members)


def _why(chosen: Plan, plans: Sequence[Plan], config: PlanConfig) -> str:
    """Return what decided, in one clause."""
    same = [plan for plan in plans if plan.device == chosen.device]
    single = next((plan for plan in same if plan.members == 1 and not plan.is_external), None)
    limit = f"{MEMORY_SHARE:.0%} of {size_text(chosen.limit_bytes)}"
    if chosen.is_external:
        if config.memory == "external":
            return "train.plan.memory asks for external memory"
        least = min(plan.predicted_bytes for plan in same if not plan.is_external)
        return f"in memory it would take {size_text(least)}, more than {limit}"
    if config.workers is not None:
        return "train.plan.workers asks for it"
    if chosen.members > 1 and single is not None:
        if not single.is_fitting:
            return f"one worker would need {size_text(single.predicted_bytes)}, more than {limit}"
        return f"{single.predicted_seconds / chosen.predicted_seconds:.1f} times as fast as one worker"
    others = [plan.predicted_seconds for plan in plans if plan.device == "cpu" and plan.is_fitting]
    if chosen.device == "cuda":
        if config.device == "cuda":
            return "train.plan.device asks for it"
        faster = f"{min(others) / chosen.predicted_seconds:.1f} times as fast as the CPU" if others else ""
        return faster or "it does not fit the memory of the CPU's workers"
    if any(plan.device == "cuda" for plan in plans):
        return "a GPU would not be faster" if any(p.is_fitting and p.device == "cuda" for p in plans) else "no GPU fits"
    return "it fits one worker"


def refusal(
    workload: Workload,
    machines: Sequence[Machine],
    config: PlanConfig,
    outcomes: Sequence[Outcome],
    plans: Sequence[Plan],
) -> InputError:
    """Return the error for a training that fits nowhere, with the cheapest ways out."""
    least = min(plans, key=lambda plan: plan.predicted_bytes / max(1, plan.limit_bytes))
    usable = MEMORY_SHARE * least.limit_bytes
    rule = "A training must fit the memory of its workers"
    found = f"{size_text(least.predicted_bytes)} for {size_text(usable)}, {MEMORY_SHARE:.0%} of a worker's limit,"
    if least.device == "cuda" and (least.predicted_bytes <= usable or not usable):
        on_gpu = GPU_SHARE * max(machine.gpu_bytes for machine in machines)
        rule = "A training must fit the memory of its GPUs"
        found = f"{size_text(least.predicted_gpu_bytes)} for {size_text(on_gpu)}, {GPU_SHARE:.0%} of a GPU's,"
    ways = [text for _, text in sorted(ways_out(workload, machines, config, outcomes))[:NUM_WAYS_OUT]]
    step = f"Do one of these: {'; '.join(ways)}" if ways else "Train on fewer columns, or start larger workers"
    smallest = f"in the smallest of {len(plans)} plans" if len(plans) > 1 else "in the one plan that there is"
    return InputError(f"{rule}, but got predicted_memory={found} {smallest}. {step}.")


def ways_out(
    workload: Workload, machines: Sequence[Machine], config: PlanConfig, outcomes: Sequence[Outcome] = ()
) -> Iterator[tuple[float, str]]:
    """Yield what would make the training fit, each with its cost: about the share that is given up or added."""

    def fits_with(
        work: Workload = workload, have: Sequence[Machine] = machines, changes: dict[str, str | None] | None = None
    ) -> bool:
        return fits(work, have, config.model_copy(update=changes), outcomes)

    if config.memory == "in_memory" and fits_with(changes={"memory": "auto"}):
        yield 0.0, 'set train.plan.memory = "auto", to read quantized rows from disk'
    if config.workers is not None and fits_with(changes={"workers": None}):
        yield 0.1, "leave train.plan.workers out"
    if config.device == "cuda" and fits_with(changes={"device": "auto"}):
        yield 0.2, 'set train.plan.device = "auto", to train on the CPU'
    if workload.includes_validation and fits_with(replace(workload, includes_validation=False)):
        yield 0.5, "set train.include_validation = false"
    if bins := next((n for n in FEWER_BINS if n < workload.max_bin and fits_with(replace(workload, max_bin=n))), None):
        yield 0.3 + 0.1 * FEWER_BINS.index(bins), f"lower train.xgboost.max_bin to {bins}"
    depths = range(workload.max_depth - 1, MIN_DEPTH - 1, -1)
    if depth := next((d for d in depths if fits_with(replace(workload, max_depth=d))), None):
        yield 0.2 * (workload.max_depth - depth), f"lower train.xgboost.max_depth to {depth}"
    if rows := _most_rows(workload, fits_with):
        yield 1 - rows / workload.num_train_rows, f"set sampling.rows = {rows}"
    yield from _more_memory(machines, lambda have: fits_with(have=have))
    yield from _more_workers(machines, config, lambda have: fits_with(have=have))


def _most_rows(workload: Workload, is_enough: Callable[[Workload], bool]) -> int | None:
    """Return the most training rows that fit, in two digits; None if hardly any do."""
    low, high = 0, workload.num_train_rows
    while high - low > max(1, workload.num_train_rows // 1000):
        middle = (low + high) // 2
        fit = is_enough(sampled(workload, middle / workload.num_train_rows))
        low, high = (middle, high) if fit else (low, middle)
    step = 10 ** max(0, len(str(low)) - 2)
    return low // step * step if low >= MIN_SAMPLE_ROWS else None


def _more_memory(
    machines: Sequence[Machine], is_enough: Callable[[Sequence[Machine]], bool]
) -> Iterator[tuple[float, str]]:
    """Yield how large a worker's limit must be."""
    smallest = min(machine.memory_bytes for machine in machines)
    limits = range(smallest // MEMORY_STEP * MEMORY_STEP, MAX_TIMES * smallest + MEMORY_STEP, MEMORY_STEP)
    limit = _first(
        limits[1:], lambda size: is_enough([replace(m, memory_bytes=max(m.memory_bytes, size)) for m in machines])
    )
    if limit is None:
        return
    shown, added, room = f"{limit / 2**30:g} GiB", limit / smallest - 1, machines[0].host_memory_bytes
    if not _is_local(machines):
        yield added, f"start workers with a memory limit of {shown}"
    elif not room or limit * len(machines) <= room:
        yield added, f"raise cluster.memory_limit to {shown}"
    elif limit <= room:
        yield added, f'set cluster.workers = {room // limit} and cluster.memory_limit = "{shown}"'


def _more_workers(
    machines: Sequence[Machine], config: PlanConfig, is_enough: Callable[[Sequence[Machine]], bool]
) -> Iterator[tuple[float, str]]:
    """Yield how many workers of other machines would be enough."""
    if _is_local(machines) or config.workers is not None:
        return
    model = max(machines, key=lambda machine: (machine.gpu_bytes, machine.memory_bytes))

    def others(count: int) -> list[Machine]:
        return [replace(model, host=f"another {number}") for number in range(count)]

    more = _first(range(1, MAX_TIMES * len(machines)), lambda count: is_enough([*machines, *others(count)]))
    if more is not None:
        yield more / len(machines), f"start {more} more worker{'s' * (more > 1)} ({len(machines) + more} in all)"


def _first(ordered: range, is_enough: Callable[[int], bool]) -> int | None:
    """Return the first number that is enough, where all after it are too; None if none is."""
    if not ordered or not is_enough(ordered[-1]):
        return None
    low, high = 0, len(ordered) - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if is_enough(ordered[middle]) else (middle + 1, high)
    return ordered[low]


def _is_local(machines: Sequence[Machine]) -> bool:
    return len({machine.host for machine in machines}) == 1 and all(machine.host_threads for machine in machines)
