"""A study is bound to one space, configuration, device and reference from its first trial on, whoever else was about to begin."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from core.config import RuntimeConfig
from core.data import DATASETS
from core.engines import EngineHost
from core.errors import UserError
from results.record import REFERENCE_KEY
from search.study import CONTENT_KEY, DIGEST_KEY, INPUTS_KEY, bind, open_study
from tests.search.studies import ONE_NETWORK, Answer, command, load, search

Capture = pytest.CaptureFixture[str]
CONTENT = {"space": {}, "config": {}}
BUILT = {"space": {}, "config": {"runtime": {"build_for": ["SM89"]}}}
REFERENCE = (0.9, 20.0, 3.0)


@pytest.mark.usefixtures("dot", "empty")
@pytest.mark.slow
def test_two_runs_that_were_opened_before_the_first_trial_do_not_mix_their_spaces(capfd: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    real, others = DATASETS["digits"], [["--set", "finetune.lr=0.5"]]
    answers: list[Answer] = []

    def while_another_begins(*arguments: Any) -> Any:
        if others:
            answers.append(search(capfd, *command("--trials", "1", *others.pop(), settings=ONE_NETWORK)))
        return real(*arguments)

    monkeypatch.setitem(DATASETS, "digits", while_another_begins)
    answer = search(capfd, *command("--trials", "2", settings=ONE_NETWORK))
    assert [each.code for each in answers] == [0]
    assert answer.code == 2
    assert "a study keeps the space and configuration that it began with, but 'tiny' differs in config.finetune.lr" in answer.err
    assert [trial.state.name for trial in load().trials if trial.state.name != "WAITING"] == ["COMPLETE"]


@pytest.fixture
def opened(tmp_path: Path) -> Callable[[str], Any]:
    """Opens the one study of this test with a digest."""
    return lambda digest, content=CONTENT: open_study(f"sqlite:///{tmp_path}/study.db", "one", digest, content, tmp_path)


def test_who_takes_the_first_trial_says_what_the_study_is_made_of_and_the_other_is_refused(opened: Callable[[str], Any]) -> None:
    first, second = opened("first"), opened("second")
    bind(first, "first", CONTENT, {"device or runtime": "here"}, REFERENCE)
    assert (first.user_attrs[DIGEST_KEY], first.user_attrs[CONTENT_KEY]) == ("first", CONTENT)
    first.ask()
    with pytest.raises(UserError, match="a study keeps the device or runtime that it began with, but 'one' began with here"):
        bind(second, "first", CONTENT, {"device or runtime": "there"}, REFERENCE)
    assert first.user_attrs[INPUTS_KEY] == {"device or runtime": "here"}


def test_the_hypervolumes_reference_is_set_anew_until_there_is_a_trial(opened: Callable[[str], Any]) -> None:
    study = opened("first")
    bind(study, "first", CONTENT, {"images": "old"}, (0.5, 1.0, 1.0))
    assert bind(study, "first", CONTENT, {"images": "new"}, REFERENCE) == REFERENCE
    assert study.user_attrs[INPUTS_KEY] == {"images": "new"}
    study.ask()
    assert bind(study, "first", CONTENT, {"images": "new"}, (0.5, 1.0, 1.0)) == REFERENCE
    assert study.user_attrs[REFERENCE_KEY] == list(REFERENCE)


def test_a_study_that_ended_before_its_first_trial_takes_another_number_of_objectives(opened: Callable[..., Any], tmp_path: Path) -> None:
    assert len(opened("timed").directions) == 3
    with EngineHost(RuntimeConfig(name="onnxruntime"), tmp_path), pytest.raises(UserError, match="another process works in"):
        opened("built", BUILT)
    study = opened("built", BUILT)
    assert study.metric_names == ["accuracy", "size_bytes"]
    study.ask()
    study.tell(0, (0.5, 1000.0))
    assert len(opened("built", BUILT).trials) == 1
