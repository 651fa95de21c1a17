"""Ray's and Dask's back-ends, where they are installed: workers of their own, our errors, and nothing sent to anybody."""

from __future__ import annotations

import importlib
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor
from pathlib import Path

import joblib
import psutil
import pytest

from core.errors import UserError
from search.cluster import Placement
from tests.faults.runs import argv, log_of, start
from tests.search.studies import load, states

PACKAGES = {"ray": "ray", "dask": "distributed"}
pytestmark = [pytest.mark.faults, pytest.mark.timeout(900), pytest.mark.filterwarnings("default")]


@pytest.fixture(params=PACKAGES)
def kind(request: pytest.FixtureRequest) -> str:
    pytest.importorskip(PACKAGES[request.param], reason=f"the extra [{request.param}] is not installed")
    return str(request.param)


@pytest.fixture
def place(kind: str) -> Iterator[Placement]:
    two = Placement(workers=2, cluster=kind)
    with two.backend():
        yield two


def where(number: int) -> tuple[int, str | None]:
    """The worker's process, and what it was told of usage statistics."""
    time.sleep(1.0)  # so that one worker cannot take both
    return os.getpid(), os.environ.get("RAY_USAGE_STATS_ENABLED")


def refuse(number: int) -> None:
    """What a worker says to its user."""
    raise UserError("the law, but the values; the remedy")


def die(number: int) -> None:
    """As the kernel does when memory runs out."""
    os.kill(os.getpid(), signal.SIGKILL)


def test_each_call_runs_in_a_worker_of_its_own_and_statistics_are_off(place: Placement) -> None:
    found = joblib.Parallel(n_jobs=2, batch_size=1)(joblib.delayed(where)(number) for number in range(2))
    assert len({pid for pid, _ in found} | {os.getpid()}) == 3
    if place.kind == "ray":
        assert {told for _, told in found} == {"0"}
        usage = importlib.import_module("ray._common.usage.usage_lib")
        assert not usage.usage_stats_enabled()
        servers = [each for each in psutil.Process().children(recursive=True) if {"raylet", "gcs_server"} & {each.name()}]
        assert servers, "Ray's own processes"
        assert {each.environ().get("RAY_USAGE_STATS_ENABLED") for each in servers} == {"0"}


def test_a_cluster_listens_on_this_machine_alone(place: Placement) -> None:
    if place.kind == "ray":
        pytest.skip("Ray listens on the machine's address, for workers that join; its documentation says how to close that")
    listening = [each for each in psutil.net_connections("tcp") if each.status == psutil.CONN_LISTEN and each.pid == os.getpid()]
    assert {each.laddr.ip for each in listening} <= {"127.0.0.1", "::1"}


def test_what_a_worker_says_to_the_user_arrives_as_it_is(place: Placement) -> None:
    with pytest.raises(UserError, match=r"^the law, but the values; the remedy$"):
        joblib.Parallel(n_jobs=2, batch_size=1)(joblib.delayed(refuse)(number) for number in range(2))


def test_a_worker_that_is_killed_is_told_apart_from_a_defect(kind: str) -> None:
    with pytest.raises(BrokenExecutor), Placement(workers=2, cluster=kind).backend():
        joblib.Parallel(n_jobs=2, batch_size=1)(joblib.delayed(die)(number) for number in range(2))


def test_more_workers_than_ray_has_room_for_are_refused() -> None:
    pytest.importorskip("ray", reason="the extra [ray] is not installed")
    for place, law in (
        (Placement(workers=1000, cluster="ray"), r"1000 workers need 1000 CPUs of the Ray cluster, but it has \d+; give fewer --workers"),
        (Placement(workers=1, cluster="ray", gpus_per_worker=9), r"1 workers need 9 GPUs of the Ray cluster, but it has \d+"),
    ):
        with pytest.raises(UserError, match=law), place.backend():
            pass


def test_a_whole_study_on_two_workers_of_a_cluster(kind: str, tmp_path: Path) -> None:
    run = start(tmp_path, *argv("--trials", "4", "--workers", "2", "--cluster", kind))
    assert run.wait(600) == 0, log_of(tmp_path)[-2000:]
    study = load(folder=tmp_path / "runs" / "tiny")
    assert states(study) == ["COMPLETE"] * 4
    assert len({trial.user_attrs["owner"]["pid"] for trial in study.trials} | {run.pid}) == 3
    assert log_of(tmp_path).count("teacher: epoch 1/1") == 1, "made once, by whoever came first"
