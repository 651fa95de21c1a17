from results.epochs import Epoch, append_epoch, read_epochs

LINES = [
    Epoch(None, "teacher", 1.0, 25.0, 1234.5, 2.25),
    Epoch(0, "distil", 1.0, 2.5, 900.0, 0.125),
    Epoch(0, "distil", 2.0, 2.5, 910.0, 0.0625, 0.03, 0.875),
]


def test_what_is_appended_is_read_back(tmp_path):
    path = tmp_path / "runs" / "epochs.csv"
    for line in LINES:
        append_epoch(path, line)
    assert read_epochs(path) == LINES
    assert path.read_text().splitlines()[0] == "trial,stage,epoch,epochs,images_per_s,loss,lr,accuracy"


def test_a_line_that_a_killed_run_left_half_written_is_skipped(tmp_path):
    path = tmp_path / "epochs.csv"
    append_epoch(path, LINES[0])
    with path.open("a") as file:
        file.write("3,distil,1")
    assert read_epochs(path) == LINES[:1]


def test_a_study_without_the_file_has_no_epochs(tmp_path):
    assert read_epochs(tmp_path / "epochs.csv") == []


def test_of_a_training_that_began_anew_the_last_counts(tmp_path):
    path = tmp_path / "epochs.csv"
    for loss in (2.0, 1.5):
        append_epoch(path, LINES[0]._replace(loss=loss))
    assert [epoch.loss for epoch in read_epochs(path)] == [1.5]


def test_a_file_of_an_older_version_without_rate_and_accuracy_is_read(tmp_path):
    path = tmp_path / "epochs.csv"
    path.write_text("trial,stage,epoch,epochs,images_per_s,loss\n0,distil,1,2.5,900,0.125\n")
    assert read_epochs(path) == [LINES[1]]
