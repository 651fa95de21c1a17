"""The Optuna study behind a run: opened, checked against the space, swept of dead trials, counted, deleted."""

from __future__ import annotations

import re
import shutil
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from core.engines import living_hosts
from core.errors import UserError
from core.files import lock_of
from results.front import Point
from results.record import RECORD_KEY, REFERENCE_KEY, TrialRecord, read_records
from search.digest import portable
from search.identity import FILE, check_folder, claim
from search.owner import OWNER_KEY, current_owner, is_dead
from search.storage import GRACE_S, open_storage, safe_url, sqlite_file

METRICS = ("accuracy", "size_bytes", "latency_ms")
DIRECTIONS: tuple[Literal["maximize", "minimize"], ...] = ("maximize", "minimize", "minimize")
DIGEST_KEY, CONTENT_KEY, INPUTS_KEY = "space_digest", "space", "inputs"
NETWORK = "network's file"
"""Among the inputs: what the teacher's own file and those that it imports say."""
REQUEUED_KEY = "requeued_from"
DEATHS_KEY, DEATHS = "deaths", 3
"""How often the process of a queued trial, and of those that it repeats, has died at it; a trial at which so many do is given up."""
COPY, UNMOVED_KEY = "-on-", "to_be_moved"
"""In the name of a study's copy that `--remeasure` keeps, and its attribute while the study is being written anew: that one's name."""
NAMED = 5
"""Studies that a message names at most."""
WAYS_OUT = "use another --study NAME, or --fresh to delete this one and begin anew"
MADE_BY_A_RUN = (
    *("candidates", "drafts", "parents", "teacher", "latency.json", "front.csv", "front.html", "run.json", "epochs.csv"),
    *("refined", "refined.csv", "refined.json", "reexported", "artifacts", "tensorboard", "stages.csv", "sensitivity", "layer_times"),
    *("engine-cache", "report.html", "report.md", "report.csv", FILE),
)


def check_name(name: str) -> str:
    """A study's name is also its folder's: letters, digits, '.', '_', '-'. Raises UserError otherwise."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}", name):
        raise UserError(f"a study's name has letters, digits, '.', '_' and '-' only, but got {name!r}; choose another --study")
    return name


def open_study(url: str, name: str, digest: str, content: Mapping[str, Any], folder: Path) -> optuna.Study:
    """Create the study or continue it; `folder` is runs/<study>. Raises UserError when it was made from another space or configuration.

    Nothing binds one that ended before its first trial: where it has another number of objectives, it is made anew.
    """
    count = 2 if content.get("config", {}).get("runtime", {}).get("build_for") else 3  # engines that are only built have no latency
    study = find_study(url, name)
    check_folder(study, folder, url)
    if study is not None and len(study.directions) != count and not study.get_trials(deepcopy=False):
        check_at_rest(study, folder, living_hosts(folder), "another number of objectives")
        optuna.delete_study(study_name=name, storage=study._storage)
        study = None
    if study is None:
        directions = list(DIRECTIONS[:count])
        study = optuna.create_study(storage=open_storage(url, requeue_stale), study_name=name, directions=directions, load_if_exists=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            study.set_metric_names(list(METRICS[:count]))
    check_space(study, digest, content)
    # also when it continues: an export looks for the images where they are now
    study.set_user_attr(CONTENT_KEY, dict(content))
    study.set_user_attr(DIGEST_KEY, digest)
    claim(study, folder, url)
    return study


def restore_study(url: str, name: str) -> bool:
    """Put back the copy of a study that `--remeasure` was writing anew when it was killed; whether it was so. Hold the study's lock."""
    path = sqlite_file(url)
    if path is not None and not path.exists():
        return False
    storage = open_storage(url)
    copy = _unmoved(storage, name)
    if copy is None:
        return False
    with suppress(KeyError):
        optuna.delete_study(study_name=name, storage=storage)
    optuna.copy_study(from_study_name=copy.study_name, from_storage=storage, to_storage=storage, to_study_name=name)
    optuna.load_study(study_name=name, storage=storage).set_user_attr(UNMOVED_KEY, None)
    copy.set_user_attr(UNMOVED_KEY, None)  # last: whoever is killed before leaves it to the next
    return True


def _unmoved(storage: BaseStorage, name: str) -> optuna.Study | None:
    """The copy of a study that `--remeasure` was writing anew when it was killed, or that it is writing now."""
    copies = (kept for kept in optuna.get_all_study_names(storage) if kept.startswith(f"{name}{COPY}"))
    found = (optuna.load_study(study_name=kept, storage=storage) for kept in copies)
    return next((copy for copy in found if copy.user_attrs.get(UNMOVED_KEY) == name), None)


def find_study(url: str, name: str) -> optuna.Study | None:
    """The study of that name, or None; makes no file."""
    path = sqlite_file(url)
    if path is not None and not path.exists():
        return None
    storage = open_storage(url, requeue_stale)
    try:
        return optuna.load_study(study_name=name, storage=storage)
    except KeyError:
        storage.engine.dispose()
        return None


def load_study(url: str, name: str, folder: Path | None = None) -> optuna.Study:
    """An existing study, to read. Raises UserError when there is none of that name or not all of it, or `folder` has another's files."""
    study, path = find_study(url, name), sqlite_file(url)
    there = path is None or path.exists()
    if there and _unmoved(open_storage(url) if study is None else study._storage, name) is not None:
        law = f"a study is read as a whole, but a --remeasure of the study {name!r} was cut off, or is writing it now"
        raise UserError(f"{law}; wait for its end, or give search.run's command again, which restores the study")
    if study is None:
        raise _no_study(url, name)
    if folder is not None:
        check_folder(study, folder, url)
    return study


def _no_study(url: str, name: str) -> UserError:
    """With the studies that are there: somebody may have renamed or copied a run's folder."""
    law, path = f"there is no study {name!r} in {safe_url(url)}", sqlite_file(url)
    names = optuna.get_all_study_names(open_storage(url)) if path is None or path.exists() else []
    if not names:
        return UserError(f"{law}; run search.run first, or name another --study")
    held = ", ".join(map(repr, names[:NAMED])) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
    return UserError(
        f"{law}, which holds {held}; a run's folder must have its study's name: give it that one again, or name another --study"
    )


def check_space(study: optuna.Study, digest: str, content: Mapping[str, Any]) -> None:
    """Raise UserError when `study` has trials of another space or configuration."""
    if not study.get_trials(deepcopy=False):
        return  # of a run that ended before its first trial, for a wrong --data-dir perhaps: nothing binds it
    name, known = study.study_name, study.user_attrs.get(DIGEST_KEY)
    if known is None:
        raise UserError(f"the study {name!r} was not made by this program; choose another --study")
    if known == digest:
        return
    # a digest of an older version may be of more than binds a study today
    if changed := ", ".join(sorted(_differences(portable(study.user_attrs[CONTENT_KEY]), portable(content)))):
        raise UserError(f"a study keeps the space and configuration that it began with, but {name!r} differs in {changed}; {WAYS_OUT}")


def check_inputs(study: optuna.Study, inputs: Mapping[str, str]) -> None:
    """Raise UserError when a study that has trials would go on with other `inputs`: what it is made of beside its space, name -> digest."""
    kept = study.user_attrs.get(INPUTS_KEY, {}) if study.get_trials(deepcopy=False) else {}
    for what, digest in inputs.items():
        if kept.get(what, digest) != digest:
            here = "give --remeasure to time its models on this device and go on, " if what == "device or runtime" else ""
            raise UserError(
                f"a study keeps the {what} that it began with, but {study.study_name!r} began with {kept[what]} and this is {digest}; "
                f"{here}restore the old one, {WAYS_OUT}"
            )


def bind(study: optuna.Study, digest: str, content: Mapping[str, Any], inputs: Mapping[str, str], reference: Point) -> Point:
    """Make a study that has no trial yet what this process is about to run, or check that it still is. Hold the study's lock.

    Another run may have been opened before the first trial of either. Returns the reference point of the study's hypervolume: the one it
    began with, or now `reference`. Raises UserError where the study has begun with something else.
    """
    check_space(study, digest, content)
    check_inputs(study, inputs)
    begun, known = bool(study.get_trials(deepcopy=False)), study.user_attrs
    kept = known.get(INPUTS_KEY, {}) if begun else {}
    now: dict[str, Any] = {INPUTS_KEY: {**kept, **inputs}}
    now |= {} if begun else {CONTENT_KEY: dict(content), DIGEST_KEY: digest}
    now |= {} if begun and REFERENCE_KEY in known else {REFERENCE_KEY: list(reference)}
    for key, value in now.items():
        if known.get(key) != value:
            study.set_user_attr(key, value)
    return tuple(map(float, study.user_attrs[REFERENCE_KEY]))


def check_at_rest(study: optuna.Study | None, folder: Path, hosts: Sequence[Path], flag: str) -> None:
    """Raises UserError where somebody else runs a trial, or holds one of the engine `hosts`: in its teacher's training, say."""
    busy = [] if study is None else [trial for trial in _running(study) if not is_orphan(trial)]
    if study is not None and busy:
        away = busy[0].user_attrs[OWNER_KEY].get("host") != current_owner()["host"]
        wait = f" (on another machine; if it was killed, it counts until it has been silent for {GRACE_S // 60} minutes)" if away else ""
        law = f"{flag} needs a study at rest, but another process is running trial {busy[0].number} of {study.study_name!r}"
        raise UserError(f"{law}; stop that one first{wait}")
    if hosts:
        raise UserError(f"{flag} needs a study at rest, but another process works in {folder}; stop that one first")


def delete_study(url: str, name: str, folder: Path) -> None:
    """`--fresh`: forget the study and the files of its runs; other studies of the database and the user's own files stay."""
    study = find_study(url, name)
    check_folder(study, folder, url)
    check_at_rest(study, folder, living_hosts(folder), "--fresh")
    if study is not None:
        if study.get_trials(deepcopy=False) and DIGEST_KEY not in study.user_attrs:
            raise UserError(f"--fresh deletes only what this program made, but the study {name!r} is another's; choose another --study")
        optuna.delete_study(study_name=name, storage=open_storage(url))
    made = [folder / name for name in MADE_BY_A_RUN]
    for entry in (*made, *map(lock_of, made), *folder.glob("engines-*")):
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink(missing_ok=True)


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Dotted keys whose values differ."""
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            yield from _differences(before, after, f"{prefix}{key}.")
        elif before != after:
            yield f"{prefix}{key}"


# --- trials ----------------------------------------------------------------------------------------------------------


def count_finished(study: optuna.Study) -> int:
    """COMPLETE and PRUNED trials: what `--trials` counts."""
    return len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED)))


def sweep(study: optuna.Study, one_machine: bool = False, idle: Mapping[str, Any] | None = None, *, innocent: bool = False) -> list[int]:
    """Fail RUNNING trials whose owner is dead and queue their parameters again; their numbers. Hold the study's lock.

    A trial at which DEATHS processes of a running machine have died is given up. `one_machine`: the study cannot leave its machine, so
    owners elsewhere are dead. `idle` is an owner that runs nothing now. `innocent`: the trials are not what their processes died of.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        optuna.storages.fail_stale_trials(study)  # of other machines, by their heartbeats
    orphans = [trial for trial in _running(study) if is_orphan(trial, one_machine, idle)]
    for trial in orphans:
        deaths = deaths_of(trial) + (not innocent and _died_at(trial, idle))
        if deaths >= DEATHS:
            study._storage.set_trial_user_attr(trial._trial_id, RECORD_KEY, _given_up(trial.number).model_dump_json())
        else:
            requeue(study, trial, deaths)
        study.tell(trial.number, state=TrialState.FAIL)
    return [trial.number for trial in orphans]


def count_begun(study: optuna.Study) -> int:
    """Trials that do not wait in the queue."""
    return sum(trial.state != TrialState.WAITING for trial in study.get_trials(deepcopy=False))


def count_running(study: optuna.Study) -> int:
    """Trials that somebody works on, or did when they were last heard of."""
    return len(_running(study))


def tally(study: optuna.Study) -> tuple[int, int]:
    """Finished trials, and finished and running ones, in one look: a trial that ends between two would be in neither."""
    states = Counter(trial.state for trial in study.get_trials(deepcopy=False))
    finished = states[TrialState.COMPLETE] + states[TrialState.PRUNED]
    return finished, finished + states[TrialState.RUNNING]


def _running(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))


def deaths_of(trial: FrozenTrial) -> int:
    """How many processes have died at what this trial repeats."""
    return int(trial.user_attrs.get(DEATHS_KEY, 0))


def _died_at(trial: FrozenTrial, idle: Mapping[str, Any] | None) -> bool:
    """Whether an orphan's process may have died of it: not one that lives, never signed it, or went with its machine."""
    owner = trial.user_attrs.get(OWNER_KEY)
    return owner is not None and owner != idle and owner.get("boot") == current_owner().get("boot")


def _given_up(number: int) -> TrialRecord:
    return TrialRecord(number=number, state="FAIL", reason=f"its process died {DEATHS} times (out of memory, perhaps)")


def requeue_stale(study: optuna.Study, trial: FrozenTrial) -> None:
    """Optuna's answer to a trial, failed by now, whose worker on another machine has fallen silent: queue it again, or give it up."""
    deaths = deaths_of(trial) + 1
    if deaths < DEATHS:
        requeue(study, trial, deaths)
        return
    told, asked = {RECORD_KEY: _given_up(trial.number).model_dump_json()}, (trial.params, trial.distributions)
    study.add_trial(optuna.trial.create_trial(state=TrialState.FAIL, user_attrs=told, params=asked[0], distributions=asked[1]))


def requeue(study: optuna.Study, trial: FrozenTrial, deaths: int | None = None) -> None:
    """Queue a trial's parameters for the next start, once: those it has asked for, and those it was itself queued with.

    `deaths` at it so far; None: no more than before.
    """
    params = trial.system_attrs.get("fixed_params", {}) | trial.params
    # a process that died here has queued them, and not yet failed the trial
    if params and not is_requeued(study, trial.number):
        so_far = deaths_of(trial) if deaths is None else deaths
        study.enqueue_trial(params, user_attrs={REQUEUED_KEY: trial.number, **({DEATHS_KEY: so_far} if so_far else {})})


def is_requeued(study: optuna.Study, number: int) -> bool:
    """Whether another trial repeats trial `number`."""
    return any(trial.user_attrs.get(REQUEUED_KEY) == number for trial in study.get_trials(deepcopy=False))


def requeue_interrupted(study: optuna.Study, number: int | None) -> None:
    """Queue trial `number` again if an interrupt has ended it. One still RUNNING is left to the next start's sweep."""
    trial = next((trial for trial in study.get_trials(deepcopy=False, states=(TrialState.FAIL,)) if trial.number == number), None)
    if trial is not None and number not in {record.number for record in read_records(study)}:
        requeue(study, trial)


def is_orphan(trial: FrozenTrial, one_machine: bool = False, idle: Mapping[str, Any] | None = None) -> bool:
    """Whether nobody works on a RUNNING trial any more. It is signed under the study's lock: unsigned, its owner died in that moment."""
    owner = trial.user_attrs.get(OWNER_KEY)
    return owner is None or owner == idle or is_dead(owner, one_machine)
