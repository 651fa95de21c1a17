"""The frame of every command: what its errors look like and which exit code they get."""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from core.errors import TrialError, UserError
from core.tables import nearest

BAD_INPUT = 2
INTERRUPTED = 130
BROKEN_PIPE = 141
USERS_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EEXIST, errno.ENOTDIR, errno.ENAMETOOLONG)


class Parser(argparse.ArgumentParser):
    """argparse whose complaints are one line, as all others are. Flags are not abbreviated: scripts must outlive new flags."""

    def __init__(self, **keywords: Any) -> None:
        super().__init__(**keywords, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Raise UserError in place of printing the usage and exiting."""
        flags = [flag for flag in self._option_string_actions if flag.startswith("--")]
        unknown = message.partition("unrecognized arguments: ")[2].split()
        hint = nearest(unknown[0].partition("=")[0], flags) if unknown else ""
        raise UserError(f"{message}{hint or ';'} see {self.prog} --help")


def run_main(fn: Callable[[list[str]], int], argv: list[str] | None = None) -> int:
    """Run a command on `argv` (None: the process's own arguments) and return its exit code.

    UserError, and a disk that is full or not writable: one line on stderr, 2. Ctrl-C: 130. A closed stdout (`| head`): 141 and
    no word, as a shell reports SIGPIPE. argparse ends with its own SystemExit(2). Anything else is our defect and keeps its traceback.
    """
    try:
        code = fn(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()  # here, since at interpreter exit a closed pipe could no longer be caught
        return code
    except UserError as error:
        return fail(str(error))
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        silence_stdout()
        return BROKEN_PIPE
    except OSError as error:
        if error.errno not in USERS_DISK:
            raise
        return fail(f"the command must be able to write its files, but {error}; free space or choose another folder")


@contextmanager
def required(what: str) -> Iterator[None]:
    """What ends one trial ends a command that cannot go on without it: TrialError becomes UserError, `what` states the law."""
    try:
        yield
    except TrialError as error:
        raise UserError(f"{what}, but {type(error).__name__}: {error}") from error


def fail(message: str) -> int:
    """Print `message` as one line on stderr and return the exit code of bad input."""
    print("error:", " ".join(message.split("\n")), file=sys.stderr)
    return BAD_INPUT


def silence_stdout() -> None:
    """Point stdout's descriptor at /dev/null: what is still buffered must not raise again when the interpreter exits."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)
