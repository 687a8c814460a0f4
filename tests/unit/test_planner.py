"""Where a training runs: what it is predicted to take, what is chosen, what is refused, and what outcomes teach."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from infra.errors import InputError
from infra.storage import Store
from tasks._costs import MIB, Workload, cpu_bytes, cpu_seconds, gpu_bytes, member_share, thread_speed
from tasks._outcomes import (
    NUM_READ,
    Factors,
    Outcome,
    error_text,
    factors_of,
    keep_outcome,
    load_outcomes,
)
from tasks._planner import Machine, Plan, PlanConfig, alternatives, corrected, make_plan, ways_out
from tasks._plans import MEMORY_SHARE
from tasks._ways import fits, page_rows

GIB = 2**30
AUTO = PlanConfig()
LOANS = Workload(26_000, 7_192, num_numeric=8, vocabulary_sizes=(9, 16, 7, 15, 6, 5))
LARGE = Workload(8_000_000, 1_000_000, 60, vocabulary_sizes=(1000,) * 5, num_shards=60, rounds=500)


def here(num_workers: int, memory: float, cores: int = 2) -> list[Machine]:
    """Return the workers of one machine; memory in GiB."""
    threads = max(1, cores // num_workers)
    return [Machine("here", threads, int(memory * GIB), host_threads=cores)] * num_workers


def elsewhere(num_workers: int, memory: float, threads: int = 4, gpu: float = 0) -> list[Machine]:
    """Return workers on as many hosts; memory in GiB."""
    return [Machine(f"h{i}", threads, int(memory * GIB), gpu_bytes=int(gpu * GIB)) for i in range(num_workers)]


def ended(kind: str, memory: float, seconds: float, minute: int = 0) -> Outcome:
    """Return an outcome that took so many times what was predicted."""
    when = f"2026-12-01T03:{minute:02}:00+00:00"
    return Outcome(kind, 1000 * MIB, int(1000 * MIB * memory), 100.0, 100.0 * seconds, 50, 1000, 5, when)


# What a training takes


@pytest.mark.parametrize(
    ("field", "larger"),
    [
        ("num_train_rows", 12_000_000),
        ("num_validation_rows", 4_000_000),
        ("num_numeric", 90),
        ("vocabulary_sizes", (60_000,) * 5),
        ("num_classes", 5),
        ("max_depth", 9),
        ("max_bin", 512),
        ("largest_shard_rows", 1_000_000),
        ("has_weights", True),
        ("missing_share", 0.05),
        ("has_sparse_feature", True),
    ],
)
@pytest.mark.parametrize("pages", [0, 200_000])
def test_more_work_takes_more_memory(field: str, larger: object, pages: int) -> None:
    """Rows, features, bins, classes, depth, larger shards, weights and missing values never lower the prediction."""
    more = replace(LARGE, **{field: larger})

    assert cpu_bytes(LARGE, 1.0, 0, pages) < cpu_bytes(more, 1.0, 0, pages)


@given(st.integers(10_000, 10**8), st.integers(1, 300), st.floats(0.05, 1), st.integers(1, 12))
@settings(max_examples=50, deadline=None)
def test_a_share_takes_less_memory_than_all(rows: int, features: int, share: float, depth: int) -> None:
    """A member with fewer rows needs no more memory, and a part of the sample neither."""
    work = Workload(rows, rows // 5, features, max_depth=depth, num_shards=10)

    assert cpu_bytes(work, share, 0) <= cpu_bytes(work, 1.0, 0)
    assert gpu_bytes(work, share, 0)[1] <= gpu_bytes(work, 1.0, 0)[1]


def test_pages_take_less_memory_than_rows() -> None:
    """External memory holds labels, gradients and a few pages, whatever the number of features."""
    in_memory, external = cpu_bytes(LARGE, 1.0, 0), cpu_bytes(LARGE, 1.0, 0, 200_000)

    assert external < 0.4 * in_memory


def test_missing_values_cost_four_bytes_each() -> None:
    """XGBoost keeps the bins of rows with gaps in 4 bytes; a mostly empty feature makes every value cost 8 more."""
    values = [
        replace(LARGE, vocabulary_sizes=(), **more).value_bytes
        for more in ({}, {"missing_share": 0.5}, {"missing_share": 0.5, "has_sparse_feature": True})
    ]

    assert [2.0, 3.125, 11.125] == values


@pytest.mark.parametrize(("members", "expected"), [(1, 1.0), (2, 0.5), (3, 0.4), (10, 0.1), (20, 0.1)])
def test_equal_shards_are_dealt_evenly(members: int, expected: float) -> None:
    """The fullest of a gang has as many of 10 equal shards as an even deal gives it."""
    assert expected == pytest.approx(member_share(Workload(1000, 0, 5, num_shards=10), members))


def test_a_large_shard_makes_a_full_member() -> None:
    """No member has less than the largest shard, and the prediction allows for the worst deal of the others."""
    work = Workload(1000, 0, 5, num_shards=4, largest_shard_rows=400)

    assert 0.4 == member_share(work, 4)
    assert 0.6 <= member_share(work, 2) <= 0.7


def test_more_threads_are_faster_up_to_sixteen() -> None:
    """Sixteen threads are about six times as fast as one; more are not faster."""
    assert 5 < thread_speed(16) < 7
    assert thread_speed(16) == thread_speed(48)


def test_the_published_time_is_predicted() -> None:
    """Ten million rows, 13 features, 100 trees of depth 10 take 22 to 40 s on 16 cores (GBM-perf)."""
    work = Workload(10_000_000, 0, 13, rounds=100, max_depth=10, includes_validation=False)

    assert 20 < cpu_seconds(work, 1.0, thread_speed(16)).of(100) < 60


# What is chosen


def test_small_data_trains_on_one_worker_with_all_cores() -> None:
    """On a local cluster one worker takes the cores of all, in memory, and says so in one line."""
    plan = make_plan(LOANS, here(2, 8), AUTO)

    assert (1, 2, "cpu", False, 1.0) == (plan.members, plan.threads, plan.device, plan.is_external, plan.share)
    assert plan.sentence == (
        f"1 worker, 2 threads, cpu, in memory: 33,192 rows x 14 features, about {plan.predicted_bytes / MIB:.0f} MiB "
        f"and {plan.predicted_seconds:.0f} s; it fits one worker"
    )


def test_workers_of_one_host_train_together_only_for_memory() -> None:
    """A gang on one host is not faster; it is chosen when one worker has too little memory."""
    assert 1 == make_plan(LARGE, here(4, 8, cores=8), AUTO).members

    plan = make_plan(LARGE, here(4, 2, cores=8), AUTO)

    assert plan.members > 1 and not plan.is_external
    assert plan.threads * plan.members <= 8
    assert "one worker would need" in plan.why


def test_a_gang_of_hosts_is_chosen_where_it_is_clearly_faster() -> None:
    """Large data go to several hosts, small data do not."""
    plan = make_plan(LARGE, elsewhere(4, 16), AUTO)

    assert 4 == plan.members
    assert plan.why.endswith("times as fast as one worker")
    assert 1 == make_plan(LOANS, elsewhere(4, 16), AUTO).members


def test_pages_are_used_only_where_no_matrix_fits() -> None:
    """In memory comes before external memory, a gang included."""
    assert not make_plan(LARGE, here(2, 3), AUTO).is_external

    plan = make_plan(LARGE, here(2, 1.5), AUTO)

    assert plan.is_external and 0 < plan.batch_rows < LARGE.num_rows
    assert f"pages of {plan.batch_rows:,} rows on disk" in plan.sentence
    assert "in memory it would take" in plan.why


@pytest.mark.parametrize(
    ("rows", "expected"), [(100_000, "cpu"), (10_000_000, "cuda")], ids=["small on the CPU", "large on the GPU"]
)
def test_a_gpu_is_chosen_past_the_crossover(rows: int, expected: str) -> None:
    """With 16 cores beside it a GPU pays from about a million rows of 13 features."""
    work = Workload(rows, 0, 13, rounds=100, max_depth=10, includes_validation=False)

    assert expected == make_plan(work, [Machine("g", 16, 64 * GIB, gpu_bytes=24 * GIB)], AUTO).device


def test_a_gpu_that_is_too_small_is_left_alone() -> None:
    """With device = auto, what does not fit a GPU trains on the CPU, and the plan says why."""
    plan = make_plan(LARGE, elsewhere(1, 64, threads=16, gpu=0.7), AUTO)

    assert ("cpu", "no GPU fits") == (plan.device, plan.why)


def test_what_is_asked_for_is_done() -> None:
    """Device, workers and memory of the configuration are kept to, and named as the reason."""
    machines = elsewhere(4, 64, gpu=24)
    gang = make_plan(LOANS, machines, PlanConfig(workers=3))
    paged = make_plan(LOANS, machines, PlanConfig(memory="external", device="cpu"))
    on_gpu = make_plan(LOANS, machines, PlanConfig(device="cuda"))

    assert (3, "train.plan.workers asks for it") == (gang.members, gang.why)
    assert (True, "train.plan.memory asks for external memory") == (paged.is_external, paged.why)
    assert ("cuda", "train.plan.device asks for it") == (on_gpu.device, on_gpu.why)


def test_members_are_spread_over_hosts() -> None:
    """A gang takes a worker of each host before a second one of any, and the plan says which."""
    machines = [Machine(host, 4, 16 * GIB) for host in ("a", "a", "b", "b")]

    assert (0, 2) == make_plan(LARGE, machines, PlanConfig(workers=2)).chosen


def test_the_largest_machine_is_found() -> None:
    """One worker that has the memory is chosen wherever it stands in the list."""
    machines = [Machine("a", 4, GIB), Machine("b", 4, 64 * GIB)]

    assert (1,) == make_plan(replace(LARGE, num_shards=1), machines, PlanConfig(workers=1)).chosen


@given(st.integers(10_000, 10**8), st.integers(1, 200), st.integers(1, 6), st.floats(0.5, 64))
@settings(max_examples=60, deadline=None)
def test_a_plan_never_passes_the_limit(rows: int, features: int, workers: int, memory: float) -> None:
    """Whatever is planned fits 80% of the memory with all rows; else it is refused."""
    work = Workload(rows, rows // 5, features, num_shards=20, rounds=100)
    machines = elsewhere(workers, memory)
    try:
        plan = make_plan(work, machines, AUTO)
    except InputError:
        assert not fits(work, machines, AUTO)
    else:
        assert plan.predicted_bytes <= MEMORY_SHARE * memory * GIB
        assert 1.0 == plan.share


def test_alternatives_are_shown_with_a_sample_as_a_proposal() -> None:
    """Every form is there, fitting or not; where one worker is too small, so is the largest sample that fits it."""
    plans = alternatives(LARGE, here(2, 2), AUTO)

    assert {(1, False), (1, True), (2, False), (2, True)} == {(plan.members, plan.is_external) for plan in plans}
    proposal = [plan for plan in plans if plan.share < 1]
    assert 1 == len(proposal) and proposal[0].is_fitting
    assert "of the training rows)" in proposal[0].sentence


def test_a_page_grows_with_the_memory() -> None:
    """A page takes a share of the limit, and an eighth of a member's rows at most, if that is worth a page."""
    small, large = page_rows(LARGE, GIB), page_rows(LARGE, 8 * GIB)

    assert 8 == pytest.approx(large / small, rel=0.01)
    assert LARGE.num_rows / 8 == page_rows(LARGE, 64 * GIB)
    assert 10_000 == page_rows(LOANS, 8 * GIB)


# What is refused


def test_no_gpu_is_an_error() -> None:
    """A GPU that was asked for and is not there is never a silent CPU."""
    with pytest.raises(InputError, match='train.plan.device = "cuda" needs a worker with a GPU, but got none among 2'):
        make_plan(LOANS, here(2, 8), PlanConfig(device="cuda"))


def test_too_many_workers_are_an_error() -> None:
    """The message names both numbers and the next step."""
    with pytest.raises(InputError, match="but got train.plan.workers=5 for 2. Lower it to 2, or start more workers."):
        make_plan(LOANS, here(2, 8), PlanConfig(workers=5))
    with pytest.raises(InputError, match="as many workers with a GPU in the cluster, but got train.plan.workers=2 for"):
        make_plan(
            LOANS, [*elsewhere(1, 8), *elsewhere(1, 8, gpu=8)], PlanConfig(workers=2, device="cuda", memory="auto")
        )


def test_a_plan_that_fits_nowhere_names_three_ways_out() -> None:
    """The error says what is needed and what there is, and the three cheapest ways out, each with its number."""
    with pytest.raises(
        InputError,
        match=r"A training must fit the memory of its workers, but got predicted_memory=[\d,]+ MiB for 1,229 MiB, "
        r"80% of a worker's limit, in the smallest of 2 plans. Do one of these: "
        r'set train.plan.memory = "auto", to read quantized rows from disk; set sampling.rows = \d+; '
        r"raise cluster.memory_limit to [\d.]+ GiB\.",
    ):
        make_plan(LARGE, here(2, 1.5), PlanConfig(memory="in_memory"))


def test_a_gpu_that_is_too_small_and_was_asked_for_is_an_error() -> None:
    """It is the GPU's memory that is named, and the CPU is a way out."""
    with pytest.raises(
        InputError, match=r"memory of its GPUs, but got predicted_memory=.* 90% of a GPU's, .*to train on the CPU"
    ):
        make_plan(LARGE, elsewhere(1, 64, gpu=0.8), PlanConfig(device="cuda"))


def test_each_way_out_leads_out() -> None:
    """Done as it says, each proposal makes the same training fit; the next smaller step would not."""
    machines, config = elsewhere(3, 1), PlanConfig(memory="in_memory")
    deep = replace(LARGE, max_depth=9)
    ways = dict(reversed(way) for way in ways_out(deep, machines, config))
    rows = next(int(text.rpartition(" ")[2]) for text in ways if text.startswith("set sampling.rows"))
    limit = next(float(text.split()[-2]) for text in ways if "memory limit of" in text)
    more = next(int(text.split()[1]) for text in ways if "more worker" in text)

    thinned = replace(deep, num_train_rows=rows, num_validation_rows=rows // 8, used_share=rows / 8_000_000)
    assert fits(replace(thinned, largest_shard_rows=deep.shard_rows), machines, config)
    assert fits(deep, elsewhere(3, limit), config)
    assert not fits(deep, elsewhere(3, limit - 0.25), config)
    assert fits(deep, elsewhere(3 + more, 1), config)
    assert not fits(deep, elsewhere(2 + more, 1), config)


def test_fewer_bins_and_flatter_trees_are_proposed_where_histograms_fill_the_memory() -> None:
    """Deep trees over many bins need memory that neither pages nor more workers save."""
    work = Workload(400_000, 50_000, 400, max_depth=10, num_shards=20)
    texts = [text for _, text in ways_out(work, elsewhere(2, 2), AUTO)]

    assert any(text.startswith("lower train.xgboost.max_bin to") for text in texts)
    assert any(text.startswith("lower train.xgboost.max_depth to") for text in texts)


def test_memory_that_the_machine_lacks_is_not_proposed() -> None:
    """Where all workers together would have more than the machine, fewer of them are proposed, or nothing."""

    def proposals(host_gib: float) -> str:
        machines = [replace(one, host_memory_bytes=int(host_gib * GIB)) for one in here(2, 0.6)]
        return "; ".join(text for _, text in ways_out(LARGE, machines, AUTO))

    assert "raise cluster.memory_limit to 1 GiB" in proposals(4)
    assert 'set cluster.workers = 1 and cluster.memory_limit = "1 GiB"' in proposals(1.2)
    assert "memory_limit" not in proposals(0.9)


def test_a_wrong_key_or_value_is_refused() -> None:
    """The configuration knows its keys and their values."""
    with pytest.raises(ValidationError, match="device"):
        PlanConfig.model_validate({"device": "gpu"})
    with pytest.raises(ValidationError, match="Extra inputs"):
        PlanConfig.model_validate({"gpus": 1})
    assert all(field.description for field in PlanConfig.model_fields.values())


# What outcomes teach


def test_outcomes_move_the_next_prediction() -> None:
    """What needed more memory and less time than predicted is predicted so the next time.

    Memory is that of a kind of plan alone. Time is that of the machine: other kinds on it count until there are three
    of the same, so that the only kind that ever ran does not look slower than those that never did.
    """
    before = make_plan(LOANS, here(2, 8), AUTO)
    after = make_plan(LOANS, here(2, 8), AUTO, [ended("cpu/1/in_memory", 1.2, 0.5)])
    others = make_plan(LOANS, here(2, 8), AUTO, [ended("cpu/2/in_memory", 1.2, 0.5)])

    assert 1.2 == pytest.approx(after.predicted_bytes / before.predicted_bytes, rel=1e-3)
    assert 0.5 == pytest.approx(after.predicted_seconds / before.predicted_seconds)
    assert (before.predicted_bytes, 0.5) == (others.predicted_bytes, others.seconds_factor)


def test_a_slow_machine_is_no_reason_for_another_plan() -> None:
    """A run that took far longer than predicted, on a busy machine say, leaves the choice as it was."""
    before = make_plan(LOANS, here(2, 8), AUTO)
    after = make_plan(LOANS, here(2, 8), AUTO, [ended(before.kind, 1.0, 18.0, minute) for minute in range(5)])

    assert (before.members, before.is_external) == (after.members, after.is_external)


def test_a_corrected_prediction_is_not_corrected_twice() -> None:
    """When runs keep taking 1.3 times the formula's figure, the factor stays 1.3, and the error goes to zero."""
    runs: list[Outcome] = []
    formula = make_plan(LOANS, here(2, 8), AUTO)
    for minute in range(6):
        plan = make_plan(LOANS, here(2, 8), AUTO, runs)
        peak, seconds = int(1.3 * formula.predicted_bytes), 3 * formula.seconds_of(100)
        runs.append(plan.outcome(peak, seconds, 100, f"2026-12-01T03:{minute:02}:00+00:00"))

    assert 1.3 == pytest.approx(plan.memory_factor, rel=1e-3)
    assert 3 == pytest.approx(plan.seconds_factor)
    assert "so far: memory within 0%, time within 0% (1 run)" == error_text(runs[-1:])


def test_one_surprise_does_not_lower_the_memory() -> None:
    """Less memory is predicted after three runs that took less, never below 0.7; more at once, never above 1.5."""
    small = [ended("cpu", 0.5, 1.0, minute) for minute in range(3)]

    assert Factors(1.0, 1.0, 1) == factors_of("cpu", small[:1])
    assert Factors(0.7, 1.0, 3) == factors_of("cpu", small)
    assert Factors(1.5, 20.0, 1) == factors_of("cpu", [ended("cpu", 9.0, 900.0)])


def test_only_the_last_runs_count() -> None:
    """After twenty runs on a faster machine those on the slow one are forgotten, whatever their order in the list."""
    slow = [ended("cpu", 1.4, 4.0, minute) for minute in range(20)]
    fast = [ended("cpu", 1.1, 1.0, 20 + minute) for minute in range(20)]

    assert Factors(1.1, 1.0, 20) == factors_of("cpu", [*fast, *slow])


def test_a_learnt_failure_changes_the_plan() -> None:
    """A form that has needed more than it was to need gives way to the next one."""
    machines = here(2, 2.3)
    work = replace(LARGE, num_train_rows=4_000_000, num_validation_rows=500_000)
    before = make_plan(work, machines, AUTO)
    after = make_plan(work, machines, AUTO, [ended(before.kind, 1.5, 1.0)])

    assert (1, False) == (before.members, before.is_external)
    assert before.kind != after.kind


def test_a_prediction_is_for_the_rounds_that_were_run() -> None:
    """Early stopping is no error of the prediction: reading counts once, and each round its part."""
    plan = Plan("cpu", 1, 2, False, 0, 10, 2, 100, predicted_seconds=110.0, start_seconds=10.0, rounds=1000)

    assert 15.0 == plan.seconds_of(50)
    assert 15.0 == plan.outcome(100, 15.0, 50, "2026-12-01T03:00:00+00:00").predicted_seconds


def test_correction_keeps_parts_and_whole_together() -> None:
    """The start and the rounds are stretched alike."""
    plan = corrected(make_plan(LOANS, here(2, 8), AUTO), [ended("cpu/1/in_memory", 1.0, 2.0)])

    assert plan.predicted_seconds == pytest.approx(plan.seconds_of(plan.rounds))
    assert plan.start_seconds < plan.predicted_seconds


def test_outcomes_are_kept_and_damaged_ones_ignored(tmp_path: Path) -> None:
    """The newest fifty come back, oldest first; what is no outcome does not count, and other models' are theirs."""
    store = Store(str(tmp_path))
    runs = [replace(ended("cpu", 1.0, 1.0), when=f"2026-12-01T{i // 60:02}:{i % 60:02}:00+00:00") for i in range(60)]
    for run in [*runs, runs[-1]]:
        keep_outcome(store, "churn", run)
    newest = store.list("plans/churn/")[-1]
    store.put(newest, store.get(newest)[:40])
    store.put("plans/churn/notes.json", b"{}")

    assert tuple(runs[-NUM_READ:-1]) == load_outcomes(store, "churn")
    assert () == load_outcomes(store, "loans")
    assert () == load_outcomes(store, "chur")


def test_the_error_so_far_is_one_line() -> None:
    """With ten runs and more the worst tenth is left out, and the line says so."""
    runs = [ended("cpu", 1 + minute / 100, 1.4, minute) for minute in range(18)]

    assert "so far: memory within 16%, time within 40% (18 runs, 9 of 10)" == error_text(runs)
