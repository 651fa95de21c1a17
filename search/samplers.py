"""The samplers of `--sampler`, and a clock around them. Every one goes on when trials are pruned; only TPE learns from them."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, BruteForceSampler, GPSampler, NSGAIIISampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.samplers._brute_force import _TreeNode
from optuna.trial import FrozenTrial, TrialState

from core.tables import lookup
from results.record import RECORD_KEY

STARTUP = 10
"""Trials before a model is asked; the baselines are among them."""
POPULATION = 24
"""Of the genetic samplers: Optuna's 50 would be four generations of a study of 200 trials."""
WINDOW = 1000
"""Trials that TPE looks at, the latest: an ask takes 0.03 s at 200 trials and 0.2 s at 3,000."""
MANY = 1000
"""Trials from which `auto` takes NSGA-II, whose asks do not become dearer with them."""


class RecentTPE(TPESampler):
    """TPE over the latest WINDOW trials."""

    def sample_relative(self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        """As TPE."""
        return super().sample_relative(_Recent(study), trial, search_space)  # type: ignore[arg-type]


class _Recent:
    """A study of which only the latest trials are seen. Optuna has no window of its own, so this stands on a private method."""

    def __init__(self, study: optuna.Study) -> None:
        self._study = study

    def __getattr__(self, name: str) -> Any:
        return getattr(self._study, name)

    def _get_trials(self, **how: Any) -> list[FrozenTrial]:
        return self._study._get_trials(**how)[-WINDOW:]


class Grid(BruteForceSampler):
    """Every combination once. Ranges must have steps."""

    def after_trial(self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """Nothing: Optuna's stops the study here, which raises where a dead worker's trial is told. `exhausted` says when to."""

    @staticmethod
    def _populate_tree(tree: _TreeNode, trials: list[FrozenTrial], params: dict[str, Any]) -> None:
        # A trial that was cut off while it asked has some parameters only, and comes again with them: it has tried nothing.
        kept = [trial for trial in trials if trial.state != TrialState.FAIL or RECORD_KEY in trial.user_attrs]
        BruteForceSampler._populate_tree(tree, kept, params)

    def exhausted(self, study: optuna.Study) -> bool:
        """Whether every combination was tried or is being tried."""
        begun = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING, TrialState.FAIL)
        tree = _TreeNode()
        self._populate_tree(tree, study.get_trials(deepcopy=False, states=begun), {})
        return not tree.is_any_expandable(exclude_running=True)


class Clocked(BaseSampler):
    """Passes everything on to `sampler` and adds up its `seconds`."""

    def __init__(self, sampler: BaseSampler) -> None:
        self.sampler, self.seconds = sampler, 0.0

    def exhausted(self, study: optuna.Study) -> bool:
        """Whether it has nothing new to propose."""
        return isinstance(self.sampler, Grid) and self.sampler.exhausted(study)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._timed(self.sampler.infer_relative_search_space, study, trial)

    def sample_relative(self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        return self._timed(self.sampler.sample_relative, study, trial, search_space)

    def sample_independent(self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution) -> Any:
        return self._timed(self.sampler.sample_independent, study, trial, param_name, param_distribution)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        self._timed(self.sampler.before_trial, study, trial)

    def after_trial(self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        self._timed(self.sampler.after_trial, study, trial, state, values)

    def reseed_rng(self) -> None:
        self.sampler.reseed_rng()

    def _timed(self, call: Callable[..., Any], *arguments: Any) -> Any:
        start = time.perf_counter()
        try:
            return call(*arguments)
        finally:
            self.seconds += time.perf_counter() - start


SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {
    # a liar: what other workers are measuring counts as poor, or several would try the same place
    "tpe": lambda seed: RecentTPE(multivariate=True, constant_liar=True, seed=seed, n_startup_trials=STARTUP),
    "nsga2": lambda seed: NSGAIISampler(population_size=POPULATION, seed=seed),
    "nsga3": lambda seed: NSGAIIISampler(population_size=POPULATION, seed=seed),
    "gp": lambda seed: GPSampler(seed=seed, n_startup_trials=STARTUP),
    "random": lambda seed: RandomSampler(seed=seed),
    "grid": lambda seed: Grid(seed=seed),
}


def make_sampler(name: str, seed: int, begun: int, wanted: int) -> Clocked:
    """The sampler `name` for a study with `begun` trials that shall end with `wanted`; UserError for an unknown name.

    A study that continues draws other numbers than it began with, or it would repeat its first candidates.
    """
    chosen = ("nsga2" if wanted > MANY else "tpe") if name == "auto" else name
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return Clocked(lookup(SAMPLERS, "sampler", chosen)(make_seed(seed, begun)))


def make_seed(seed: int, begun: int) -> int:
    """Of the sampler of a start with `begun` trials; in [0, 2**32)."""
    return (seed * 1_000_003 + begun) % 2**32
