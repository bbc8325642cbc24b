"""The one exception of the project half, and its stable kinds."""

from enum import StrEnum


class Kind(StrEnum):
    """Why a tool could not do what was asked; models are trained on these words."""

    NOT_FOUND = "not_found"
    OUTSIDE_ROOT = "outside_root"
    NOT_A_FILE = "not_a_file"
    NOT_A_DIRECTORY = "not_a_directory"
    NOT_TEXT = "not_text"
    TOO_LARGE = "too_large"
    PERMISSION = "permission"
    INVALID_PATTERN = "invalid_pattern"
    NO_MATCH = "no_match"
    NOT_UNIQUE = "not_unique"
    NO_CHANGE = "no_change"
    EXISTS = "exists"
    ENCODING = "encoding"
    CHANGED = "changed"
    PROTECTED = "protected"
    OUTCOME_UNKNOWN = "outcome_unknown"
    CHECKER_OUTPUT = "checker_output"
    PYTEST_FAILED = "pytest_failed"
    PYTEST_OUTPUT = "pytest_output"
    NO_TESTS = "no_tests"
    GIT_FAILED = "git_failed"
    GIT_OUTPUT = "git_output"
    NOT_A_REPOSITORY = "not_a_repository"
    IO = "io"


class Failure(Exception):
    """A tool failed for a reason the model is told."""

    def __init__(self, kind: Kind, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message


def from_os_error(error: OSError, path: str, verb: str = "read") -> Failure:
    """Return the failure that an `OSError` on the asked `path` means when it was to be read, or
    what else `verb` says; nothing of the machine's own paths is in it."""
    match error:
        case PermissionError():
            return Failure(Kind.PERMISSION, f"no permission to {verb} '{path}'")
        case FileNotFoundError():
            return Failure(Kind.NOT_FOUND, f"no file '{path}' in this project")
        case NotADirectoryError():
            return Failure(Kind.NOT_A_DIRECTORY, f"a part of '{path}' is not a folder")
        case _:
            return Failure(Kind.IO, f"'{path}': {error.strerror or type(error).__name__}")
