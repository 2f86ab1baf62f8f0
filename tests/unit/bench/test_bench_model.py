# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Workloads, the order of runs, and the statistics of the benchmark."""

from __future__ import annotations

import itertools
import random
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence

import pytest
from tcp_sm_bench import model
from tcp_sm_bench.model import Sample, Samples


def workload(name: str) -> model.Workload:
    return model.select([name])[0]


def test_the_full_list_holds_what_is_promised() -> None:
    names = [one.name for one in model.all_workloads()]
    assert len(names) == len(set(names))
    for kind, count in (
        ("pingpong", 4),
        ("stream-up", 7),
        ("stream-down", 7),
        ("redis", 4),
        ("wrk", 3),
        ("connect-request-close", 1),
        ("blocking-pingpong", 4),
        ("blocking-stream-up", 4),
    ):
        assert len([name for name in names if name.startswith(kind)]) == count


def test_the_quick_list_is_part_of_the_full_one() -> None:
    assert [one.name for one in model.select(model.QUICK)] == list(model.QUICK)


def test_a_name_without_size_selects_all_sizes_once() -> None:
    chosen = model.select(["stream-up-64", "stream-up"])
    assert [one.size for one in chosen] == [64, 1024, 4096, 16384, 65536, 262144, 1048576]


def test_an_exact_name_wins_over_names_that_it_begins() -> None:
    assert [one.name for one in model.select(["redis-get-c50"])] == ["redis-get-c50"]


@pytest.mark.parametrize("name", ["", "ping", "stream-up-2k"])
def test_an_unknown_workload_is_refused_by_name(name: str) -> None:
    with pytest.raises(ValueError, match=f"workload '{name}' is unknown; choose from: pingpong-64"):
        model.select([name])


def test_no_two_arms_of_any_workload_share_a_port() -> None:
    ports = [model.port_of(one, arm) for one in model.all_workloads() for arm in model.ARMS]
    assert len(ports) == len(set(ports))
    assert max(ports) < 30000, "the stage leaves clients the ports from 30000"


def test_hosts_have_no_arm_of_virtual_machines_and_the_other_way_round() -> None:
    assert workload("pingpong-64").arms("veth") == ("tcp", "ours", "naive", "unix")
    assert workload("wrk-1k").arms("veth") == ("tcp", "ours", "naive")
    assert workload("wrk-1k").arms("vm") == ("tcp", "ours", "spin", "loopback")
    assert not {"naive", "unix"} & set(workload("wrk-1k").arms("vm"))


def test_blocking_workloads_are_for_virtual_machines_alone() -> None:
    for one in model.all_workloads():
        assert one.blocking == ("veth" not in one.places)


def test_the_judged_arms_run_in_every_round_and_alternate() -> None:
    rounds = model.order(["tcp", "ours"], 8)
    assert all(sorted(one) == ["ours", "tcp"] for one in rounds)
    assert Counter(one[0] for one in rounds) == {"tcp": 4, "ours": 4}


def test_the_other_arms_run_in_every_other_pair_of_rounds() -> None:
    rounds = model.order(model.HOST_ARMS, 8)
    assert all({"tcp", "ours"} <= set(one) for one in rounds)
    assert [len(one) for one in rounds] == [4, 4, 2, 2, 4, 4, 2, 2]
    assert all(len(one) == len(set(one)) for one in rounds)


def test_the_ring_that_spins_is_judged_and_loopback_is_not() -> None:
    rounds = model.order(model.VM_ARMS, 8)
    assert all({"tcp", "ours", "spin"} <= set(one) for one in rounds)
    assert [len(one) for one in rounds] == [4, 4, 3, 3, 4, 4, 3, 3]


def test_no_arm_always_follows_the_same_one() -> None:
    pairs = [pair for one in model.order(model.HOST_ARMS, 8) for pair in itertools.pairwise(one)]
    for arm in model.HOST_ARMS:
        assert len({before for before, after in pairs if after == arm}) > 1


def test_few_values_give_their_extremes() -> None:
    assert model.median_interval([3.0, 1.0, 2.0, 5.0, 4.0]) == (1.0, 5.0)
    assert model.median_interval([1.5]) == (1.5, 1.5)


def test_eight_values_leave_out_one_at_each_end() -> None:
    assert model.median_interval([8.0, 1, 7, 2, 6, 3, 5, 4]) == (2, 7)


def test_the_interval_covers_the_true_median_as_often_as_it_says() -> None:
    rng = random.Random(1)
    hits = 0
    for _ in range(2000):
        low, high = model.median_interval([rng.lognormvariate(0, 1) for _ in range(15)])
        hits += low <= 1.0 <= high
    assert 0.95 <= hits / 2000 <= 0.99, "15 values: ranks 4 and 12 cover with 0.965"


def pairs(values: Mapping[str, Sequence[float | None]]) -> Samples:
    return Samples(
        {
            arm: [None if v is None else Sample(v, 1e-6 * v) for v in runs]
            for arm, runs in values.items()
        }
    )


def test_more_is_better_for_a_rate() -> None:
    entry = model.summarise(
        "veth",
        workload("redis-get-c50"),
        pairs({"tcp": [100, 100, 200], "ours": [150, 120, 280], "naive": [90, 90, 90]}),
    )
    assert entry["ratio"] == pytest.approx(1.4)
    assert entry["ci"] == pytest.approx([1.2, 1.5])
    assert (entry["tcp"], entry["ours"], entry["naive"], entry["unix"]) == (100, 150, 90, None)
    assert entry["runs"] == 3


def test_less_is_better_for_a_time() -> None:
    entry = model.summarise("veth", workload("pingpong-64"), pairs({"tcp": [20.0], "ours": [10.0]}))
    assert entry["ratio"] == pytest.approx(2.0)
    assert entry["cpu_ratio"] == pytest.approx(0.5), "CPU is not turned: below 1 is cheaper"


def test_a_failed_run_drops_its_round_only() -> None:
    samples = pairs({"tcp": [100, None, 100], "ours": [110, 500, 130]})
    samples.errors.append("tcp: hung")
    entry = model.summarise("veth", workload("wrk-1k"), samples)
    assert entry["ratio"] == pytest.approx(1.2)
    assert entry["runs"] == 2
    assert entry["errors"] == ["tcp: hung"]


@pytest.mark.parametrize(
    "values", [{"tcp": [1.0]}, {"tcp": [None], "ours": [1.0]}, {"ours": [1.0]}, {"unix": [1.0]}]
)
def test_nothing_to_compare_is_no_ratio(values: dict[str, list[float | None]]) -> None:
    entry = model.summarise("veth", workload("wrk-1k"), pairs(values))
    assert entry["ratio"] is None
    assert entry["ci"] is None
    assert entry["cpu_ratio"] is None
    assert entry["runs"] == 0


def test_the_ratio_is_the_median_of_paired_rounds_not_of_medians() -> None:
    tcp, ours = [10.0, 20.0, 40.0], [20.0, 10.0, 80.0]
    entry = model.summarise("veth", workload("wrk-1k"), pairs({"tcp": tcp, "ours": ours}))
    assert entry["ratio"] == 2.0
    assert statistics.median(ours) / statistics.median(tcp) == 1.0


def test_machines_have_a_ratio_for_each_arm_and_counts_per_operation() -> None:
    def runs(value: float, cpu: float, host: float) -> list[Sample | None]:
        return [Sample(value, cpu, host, {"doorbells": cpu * 1e6}), None]

    samples = Samples(
        {
            "tcp": runs(400, 4e-6, 8e-6),
            "ours": runs(200, 2e-6, 2e-6),
            "spin": runs(100, 6e-6, 6e-6),
            "loopback": [Sample(50, 1e-6), None],
        }
    )
    entry = model.summarise("vm", workload("blocking-pingpong-64"), samples)
    assert (entry["ratio"], entry["spin_ratio"], entry["runs"]) == (2.0, 4.0, 1)
    assert (entry["spin"], entry["loopback"], entry["naive"]) == (100, 50, None)
    assert (entry["cpu_ratio"], entry["host_cpu_ratio"], entry["spin_cpu_ratio"]) == (
        pytest.approx(0.5),
        pytest.approx(0.25),
        pytest.approx(1.5),
    )
    assert entry["per_op"] == {
        "tcp": {"doorbells": 4.0},
        "ours": {"doorbells": 2.0},
        "spin": {"doorbells": 6.0},
    }


def test_without_a_hypervisor_in_reach_its_cpu_is_unknown() -> None:
    samples = pairs({"tcp": [1.0], "ours": [1.0]})
    assert model.summarise("vm", workload("pingpong-64"), samples)["host_cpu_ratio"] is None
