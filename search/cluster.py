"""Where workers run: processes of this machine (loky), or a Ray or Dask cluster, by joblib's own back-ends.

A cluster's machines need this checkout with its packages at the same place, and a database that they all reach (--storage).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import BrokenExecutor, Future
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import joblib

from core.errors import UserError
from core.tables import lookup


@dataclass(frozen=True)
class Placement:
    """How many workers, and where. `cluster` is None, or ray, dask, ray://host:port, dask://host:port."""

    workers: int = 1
    cluster: str | None = None
    gpus_per_worker: float = 0.0
    """Of a cluster's; Ray hands them out, Dask's workers see what they were started with."""

    def __post_init__(self) -> None:
        if self.workers < 1 or not self.gpus_per_worker >= 0:
            raise UserError(
                f"--workers must be at least 1 and --gpus-per-worker at least 0, but got {self.workers} and {self.gpus_per_worker:g}"
            )
        if self.cluster is not None:
            lookup(BACKENDS, "cluster", self.cluster.partition("://")[0])
        if self.gpus_per_worker and self.kind != "ray":
            raise UserError(
                f"--gpus-per-worker is Ray's, but --cluster is {self.cluster or 'not given'}; give --cluster ray, or leave it out"
            )

    @property
    def kind(self) -> str:
        """The key of BACKENDS."""
        return "here" if self.cluster is None else self.cluster.partition("://")[0]

    @property
    def here(self) -> bool:
        """Whether all workers are processes of this machine, started by this one."""
        return self.kind == "here"

    @property
    def alone(self) -> bool:
        """Whether this process runs the trials itself."""
        return self.here and self.workers == 1

    @property
    def elsewhere(self) -> bool:
        """Whether its workers are on other machines than this one."""
        host = (self.cluster or "").partition("://")[2].rpartition(":")[0]
        return host not in ("", "localhost", "127.0.0.1", "[::1]")

    def backend(self) -> AbstractContextManager[None]:
        """Within it joblib places its calls there. UserError for a cluster that is not installed, too small or cannot be reached.

        BrokenExecutor leaves it where a worker has died.
        """
        return BACKENDS[self.kind](self)


@contextmanager
def _loky(place: Placement) -> Iterator[None]:
    from joblib.externals.loky import get_reusable_executor

    with joblib.parallel_config(backend="loky", inner_max_num_threads=max(1, joblib.cpu_count() // place.workers)):
        try:
            yield
        finally:
            get_reusable_executor().shutdown(wait=True)


@contextmanager
def _ray(place: Placement) -> Iterator[None]:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # Ray reads this nowhere else
    try:
        import ray
        from ray.util.joblib import register_ray
    except ImportError as error:
        raise UserError("--cluster ray needs the package ray, which is not installed; run: python -m pip install -e '.[ray]'") from error
    register_ray()
    try:
        ray.init(address=_address(place, "ray://"), include_dashboard=False, log_to_driver=True)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(f"--cluster must be a Ray cluster that answers, but {place.cluster} does not ({error}); start it first") from error
    try:
        _check_room(place, ray.cluster_resources())
        with joblib.parallel_config(backend="ray", ray_remote_args={"num_gpus": place.gpus_per_worker}):
            yield
    except ray.exceptions.RayActorError as error:
        raise BrokenExecutor("a worker of the Ray cluster died") from error
    finally:
        ray.shutdown()


def _check_room(place: Placement, resources: Mapping[str, float]) -> None:
    """UserError where the cluster has fewer cores or GPUs than the workers take: Ray would wait for more without a word."""
    for what, each in (("CPU", 1.0), ("GPU", place.gpus_per_worker)):
        needed, there = each * place.workers, resources.get(what, 0.0)
        if needed > there:
            raise UserError(
                f"{place.workers} workers need {needed:g} {what}s of the Ray cluster, but it has {there:g}; "
                f"give fewer --workers{' or --gpus-per-worker' if what == 'GPU' else ''}"
            )


@contextmanager
def _dask(place: Placement) -> Iterator[None]:
    try:
        from distributed import Client, KilledWorker, LocalCluster
    except ImportError as error:
        raise UserError(
            "--cluster dask needs the package distributed, which is not installed; run: python -m pip install -e '.[dask]'"
        ) from error
    address = _address(place, "tcp://")
    with ExitStack() as stack:
        # a thread each: torch takes its cores by itself
        local = {"n_workers": place.workers, "threads_per_worker": 1, "dashboard_address": None}
        try:
            client = stack.enter_context(Client(address or stack.enter_context(LocalCluster(**local))))
        except OSError as error:
            raise UserError(f"--cluster must be a Dask scheduler that answers, but {place.cluster} does not ({error}); start it") from error
        stack.enter_context(joblib.parallel_config(backend=_dask_backend(client)))
        try:
            yield
        except KilledWorker as error:
            raise BrokenExecutor("a worker of the Dask cluster died") from error


def _dask_backend(client: Any) -> Any:
    """joblib's, which waits for ever for a call that Dask has given up (joblib 1.6.0): it tells the caller of results alone."""
    from joblib._dask import DaskDistributedBackend

    class Backend(DaskDistributedBackend):
        def submit(self, func: Any, callback: Any = None) -> Future[Any]:
            future: Future[Any] = super().submit(func, callback)
            future.add_done_callback(lambda done: callback(done) if done.exception() else None)
            return future

        def retrieve_result_callback(self, out: Any) -> Any:
            return out.result() if isinstance(out, Future) else super().retrieve_result_callback(out)

    return Backend(client=client)


BACKENDS: dict[str, Callable[[Placement], AbstractContextManager[None]]] = {"here": _loky, "ray": _ray, "dask": _dask}


def _address(place: Placement, scheme: str) -> str | None:
    """host:port of the cluster under its library's scheme; None: one is started here."""
    assert place.cluster is not None
    host = place.cluster.partition("://")[2]
    return scheme + host if host else None
