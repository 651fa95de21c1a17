import optuna
import pytest
from pydantic import ValidationError

from core.errors import UserError
from results.record import RECORD_KEY, TrialRecord, read_records


@pytest.fixture
def study():
    return optuna.create_study(directions=["maximize", "minimize", "minimize"], study_name="made")


def add(study: optuna.Study, text: str, state: str) -> None:
    values = [0.9, 1000.0, 0.1] if state == "COMPLETE" else None
    study.add_trial(optuna.trial.create_trial(state=optuna.trial.TrialState[state], values=values, user_attrs={RECORD_KEY: text}))


def test_a_record_survives_json(records):
    for record in records:
        assert TrialRecord.model_validate_json(record.model_dump_json()) == record


def test_a_complete_record_without_a_measurement_is_refused():
    with pytest.raises(ValidationError, match="a COMPLETE trial has a measurement"):
        TrialRecord(number=0, state="COMPLETE", fingerprint="a")


def test_records_are_read_from_the_study_by_trial_number(study, records):
    for record in records:
        add(study, record.model_dump_json(), record.state)
    assert read_records(study) == records


def test_trials_without_a_record_are_passed_over(study):
    study.ask()
    study.add_trial(optuna.trial.create_trial(values=[0.9, 1.0, 1.0]))
    assert read_records(study) == []


def test_a_record_that_never_came_true_does_not_count(study, records):
    add(study, records[0].model_dump_json(), "FAIL")
    running = study.ask()
    running.set_user_attr(RECORD_KEY, records[1].model_dump_json())
    assert read_records(study) == []


def test_a_repeated_trial_counts_under_its_own_number(study, records):
    add(study, records[0].model_dump_json(), "COMPLETE")
    add(study, records[0].model_dump_json(), "COMPLETE")
    assert [record.number for record in read_records(study)] == [0, 1]


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"number": 0, "state": "COMPLETE", "surprise": 1}', '{"number": 0, "state": "PRUNED", "width": "wide"}']
)
def test_an_unreadable_record_names_its_trial_and_the_ways_out(study, text):
    add(study, text, "COMPLETE")
    with pytest.raises(UserError, match=r"trial 0 of 'made' .*--study.*--fresh") as caught:
        read_records(study)
    assert "\n" not in str(caught.value)
