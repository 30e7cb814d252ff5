"""Every error that nas_prune raises on purpose: what is wrong, where, and what to do about it.

NasPruneError                 exit code 2: the input cannot be used
├── UnknownNameError          no gate, recipe, dataset ... of that name (with a hint)
├── RecipeError               a recipe or an override that cannot be read, or used
├── SpaceError                a search space that does not fit the model
├── DataError                 a dataset that is missing or unreadable
├── TraceError                a model that cannot be captured, or has nothing to prune
├── ArchError                 an architecture that does not fit the axes
├── BudgetError               a budget that no architecture of the space can meet
├── CalibrationError          a calibration that is corrupt, or of another model, runtime or device
├── CheckpointError           a checkpoint that is corrupt, or of another run
├── ArtifactError             an artefact that is corrupt, tampered with or unknown
├── RuntimeMissingError       a runtime that is not installed
├── InUseError                a run folder in which another process works
└── RunError                  exit code 1: the input was fine, the run failed
    ├── DeriveError           the small model cannot be built
    ├── ExactnessError        the small model does not compute what the gated one did
    ├── DivergedError         the loss is not a number
    ├── StorageError          a file that cannot be written; exit code 2 where nothing can be written at all
    └── InterruptedRunError   stopped by a signal; the run can be resumed
"""

import errno
from collections.abc import Mapping
from reprlib import Repr

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})  # there is no room, now
CLOSED = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})  # nobody can write there


class NasPruneError(Exception):
    """Root of the tree. Its text is meant for the user: what, where, what to do. ``told``: the run's record has it.

    >>> npr.Arch({"conv2": [0]}).check(axes)
    Traceback (most recent call last):
    nas_prune.base.errors.ArchError: the architecture names axis 'conv2', which the model does not have; ...
    """

    exit_code = 2
    told = False


def first_line(error: BaseException) -> str:
    """The first line of what someone else's error says; torch's go on for pages."""
    return one_line(next(iter(str(error).splitlines()), ""), 300)


def one_line(text: str, most: int = 120) -> str:
    """A text in one line of at most so many characters, none of them a control character."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text[: 4 * most]).split())
    return line if len(line) <= most and len(text) <= 4 * most else f"{line[: most - 3]}..."


def shown(value: object, most: int = 60) -> str:
    """A value as a message may show it: what ``repr`` says of it, cut after a few words."""
    reader = Repr()
    reader.maxstring = reader.maxother = most
    try:
        return one_line(reader.repr(value), most + 2)
    except ValueError:  # Python does not write numbers of more than 4300 digits
        return f"a {type(value).__name__} with a number of thousands of digits"


class UnknownNameError(NasPruneError):
    """A name that no registry entry, recipe or search space has."""


class RecipeError(NasPruneError):
    """A recipe, or an override of one, that cannot be read, or used as it is."""


class SpaceError(NasPruneError):
    """A search space that does not fit the model."""


class DataError(NasPruneError):
    """A dataset that is missing, unreadable or of the wrong shape."""

    def __init__(self, message: str) -> None:
        super().__init__(message.rpartition("DataError: ")[2].strip())  # of its workers, torch hands on the traceback


class TraceError(NasPruneError):
    """A model that cannot be captured, or that has nothing to prune. ``path``: of the module that stands in the way."""

    def __init__(self, message: str, *, path: str = "") -> None:
        super().__init__(message)
        self.path = path


class ArchError(NasPruneError):
    """An architecture that does not fit the axes of the model."""


class BudgetError(NasPruneError):
    """A budget that no architecture of the search space can meet: a run that ends in it is infeasible.

    What else is wrong with a budget, or keeps a selector from an answer, is a RecipeError. ``smallest``: the
    size per axis of the smallest that a selector can make, where that is predicted to be too much.
    """

    def __init__(self, message: str, *, smallest: Mapping[str, float] | None = None) -> None:
        super().__init__(message)
        self.smallest = smallest


class CalibrationError(NasPruneError):
    """A calibration that is corrupt, or of another model, runtime or device."""


class CheckpointError(NasPruneError):
    """A checkpoint that is corrupt, truncated, or of another recipe."""


class ArtifactError(NasPruneError):
    """An artefact that is corrupt, tampered with, or of an unknown architecture."""


class RuntimeMissingError(NasPruneError):
    """A runtime (ONNX Runtime, OpenVINO, ...) that is not installed."""


class InUseError(NasPruneError):
    """A run folder in which another process works."""


class RunError(NasPruneError):
    """The input was fine, but the run failed."""

    exit_code = 1


class DeriveError(RunError):
    """The small model cannot be built. ``node``: the node of the graph that stands in the way, where that is known."""

    def __init__(self, message: str, *, node: str | None = None) -> None:
        super().__init__(message)
        self.node = node


class ExactnessError(RunError):
    """The small model does not compute what the gated model computed."""


class DivergedError(RunError):
    """The loss is not a number."""


class StorageError(RunError):
    """A file cannot be written; what was written before is whole."""

    def __init__(self, path: object, error: OSError) -> None:
        full = error.errno in FULL
        advice = "make room, and the same command goes on from here" if full else "choose a place that can be written"
        super().__init__(f"cannot write {path}: {error.strerror or error}; {advice}")
        self.exit_code = 1 if full else 2


class InterruptedRunError(RunError):
    """A signal stopped the run; what was saved can be resumed."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal_number = signal_number
        self.exit_code = 128 + signal_number
