import csv
import io

import pytest
from rich.console import Console

from core.errors import UserError
from results.front import front
from results.table import front_csv, front_table, front_text


def printed(table, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(table)
    return console.file.getvalue()


def test_the_text_states_the_numbers_of_every_rank_and_of_the_teacher(records, teacher):
    lines = front_text(front(records), teacher).splitlines()
    assert lines[0].split("  ")[0] == "rank"
    assert lines[2].split() == ["0", "4", "98.00", "20.0", "0.400", "20.0", "1.0", "resnet8", "(0.5)", "4.5"]
    assert lines[4].split() == ["2", "0", "90.00", "5.0", "0.100", "80.0", "4.0", "resnet8", "(0.5)", "4.5"]
    assert lines[5].split() == ["-", "-", "99.00", "400.0", "0.400", "1.0", "1.0", "teacher", "32.0"]


def test_units_and_method_are_stated(records, teacher):
    for text in (front_text(front(records), teacher), " ".join(printed(front_table(front(records), teacher)).split())):
        assert "144 search images" in text
        assert "1000 bytes" in text
        assert "median, batch 1, 1 thread, openvino" in text


def test_rich_and_plain_tables_hold_the_same_rows(records, teacher):
    rich = [line.split() for line in printed(front_table(front(records), teacher)).splitlines()]
    for line in front_text(front(records), teacher).splitlines()[2:6]:
        assert line.split() in rich


def test_an_unstable_latency_is_marked(make_record):
    assert "0.200*" in front_text([make_record(0, 0.9, 1000, 0.2, stable=False)])
    assert "*: unstable" in front_text([make_record(0, 0.9, 1000, 0.2, stable=False)])
    assert "*" not in front_text([make_record(0, 0.9, 1000, 0.2)])


def test_latencies_under_other_conditions_are_not_compared(make_record, teacher):
    row = front_text([make_record(0, 0.9, 1000, 0.2, threads=2)], teacher).splitlines()[2]
    assert row.split()[5:7] == ["400.0", "-"]


def test_without_a_teacher_nothing_is_compared(make_record):
    assert front_text([make_record(0, 0.9, 1000, 0.2)]).splitlines()[2].split()[5:7] == ["-", "-"]


def test_a_long_front_is_cut_and_says_so(records):
    text = printed(front_table(front(records), rows=1))
    assert "2 more ranks" in text
    assert "90.00" not in text


def test_no_number_is_cut_on_a_terminal_of_80_columns(records, teacher):
    text = printed(front_table(front(records), teacher), width=80)
    assert "…" not in text
    assert all(number in text for number in ("98.00", "0.400", "400.0", "32.0"))


def test_a_students_name_is_not_read_as_markup(make_record):
    assert "[bold]net (0.5)" in printed(front_table([make_record(0, 0.9, 1000, 0.2, student="[bold]net")]))


def test_an_empty_front_says_so():
    assert "no complete trial yet" in front_text([])
    assert "no complete trial yet" in printed(front_table([]))


def test_the_csv_holds_the_exact_numbers(records, teacher, tmp_path):
    ranked = front(records)
    front_csv(ranked, teacher, tmp_path / "new" / "front.csv")
    rows = list(csv.DictReader((tmp_path / "new" / "front.csv").read_text().splitlines()))
    assert [int(row["trial"]) for row in rows] == [4, 1, 0]
    for row, record in zip(rows, ranked, strict=True):
        assert float(row["accuracy"]) == record.measurement.accuracy
        assert int(row["size_bytes"]) == record.measurement.size_bytes
        assert float(row["latency_p50_ms"]) == record.measurement.latency.p50_ms
        assert float(row["times_smaller"]) == teacher.size_bytes / record.measurement.size_bytes
        assert row["fingerprint"] == record.fingerprint


def test_the_csv_of_an_empty_front_is_its_header(tmp_path):
    front_csv([], None, tmp_path / "front.csv")
    assert (tmp_path / "front.csv").read_text().startswith("rank,trial,accuracy,")
    assert len((tmp_path / "front.csv").read_text().splitlines()) == 1


def test_a_file_that_cannot_be_written_is_named_and_nothing_is_left_behind(records, tmp_path):
    (tmp_path / "front.csv").mkdir()
    with pytest.raises(UserError, match=r"front\.csv must be writable"):
        front_csv(front(records), None, tmp_path / "front.csv")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"front\.csv must be writable"):
        front_csv(front(records), None, tmp_path / "file" / "front.csv")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "front.csv"]
