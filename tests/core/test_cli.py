import errno
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from core.cli import run_main
from core.errors import TrialError, UserError


def raising(error: BaseException) -> Callable[[list[str]], int]:
    """A command that ends so."""

    def command(argv: list[str]) -> int:
        raise error

    return command


def test_the_commands_own_code_is_the_exit_code() -> None:
    assert [run_main(len, ["x"] * count) for count in range(3)] == [0, 1, 2]


def test_bad_input_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main(raising(UserError("a law\nits values")), []) == 2
    assert capsys.readouterr() == ("", "error: a law its values\n")


def test_a_full_disk_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main(raising(OSError(errno.ENOSPC, "No space left on device", "study.db")), []) == 2
    assert "No space left on device: 'study.db'" in capsys.readouterr().err


def test_a_name_that_is_too_long_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run_main(lambda argv: (tmp_path / argv[0]).mkdir() or 0, ["x" * 300]) == 2
    assert "File name too long" in capsys.readouterr().err


def test_an_interrupt_is_130() -> None:
    assert run_main(raising(KeyboardInterrupt()), []) == 130


@pytest.mark.parametrize("error", [ZeroDivisionError(), TrialError("escaped"), FileNotFoundError(errno.ENOENT, "gone")])
def test_a_defect_of_ours_keeps_its_traceback(error: Exception) -> None:
    with pytest.raises(type(error)):
        run_main(raising(error), [])


def test_a_closed_pipe_is_quiet() -> None:
    code = "from core.cli import run_main; raise SystemExit(run_main(lambda argv: print('x' * 300_000) or 0, []))"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=Path(__file__).parents[2])
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait() == 141
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.stderr.close()
