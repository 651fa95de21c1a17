"""Every exception that this project raises on purpose.

    ParetopressError
    ├── UserError               bad input: one line (law, values, remedy), exit code 2, nothing lost
    │   ├── MissingRuntime      a runtime that is not installed here, with its install line
    │   └── Disturbed           something around the run has failed: what was going on is done again
    │       └── DiskRefused         a disk that is full, a folder that may not be written
    └── TrialError              one trial ends, the study goes on
        ├── InfeasibleCandidate     -> PRUNED: the candidate can never satisfy a hard limit
        │   └── HopelessCandidate       -> PRUNED: nor could it join the front
        ├── TrainingDiverged        -> FAIL: the loss is no longer finite
        ├── EngineBuildError        -> FAIL: the runtime refused, crashed or hung on the model
        ├── EngineMismatch          -> FAIL: the engine and PyTorch disagree on the same images
        └── MeasurementError        -> FAIL: the engine ran but its numbers cannot be trusted

Anything else is a defect of ours and stops the run with a traceback.
"""


def one_line(text: object, limit: int | None = None) -> str:
    """Without line breaks and repeated blanks, as a reason stands in a message; cut to `limit` characters, the last of them "..."."""
    line = " ".join(str(text).split())
    return line if limit is None or len(line) <= limit else f"{line[: limit - 3]}..."


class ParetopressError(Exception):
    """Root of the tree."""


class UserError(ParetopressError):
    """Bad input. The message states the law, then the values, then the remedy, on one line."""


class MissingRuntime(UserError):
    """A runtime that is not installed on this machine."""


class Disturbed(UserError):
    """A process, a file or a device that the run needs has failed, for no fault of the candidate."""


class DiskRefused(Disturbed):
    """A file could not be written, for no fault of what was to be in it."""


class TrialError(ParetopressError):
    """One trial cannot go on; the study can."""


class InfeasibleCandidate(TrialError):
    """A hard limit of the space is out of this candidate's reach; the trial counts as PRUNED."""


class HopelessCandidate(InfeasibleCandidate):
    """A point of the front is at least as good in everything that this candidate may still reach."""


class TrainingDiverged(TrialError):
    """The training loss is NaN or infinite."""


class EngineBuildError(TrialError):
    """The runtime could not make an engine of the exported model."""


class EngineMismatch(TrialError):
    """Engine and PyTorch disagree by more than the tolerance."""


class MeasurementError(TrialError):
    """The engine's latency or output is not usable."""
