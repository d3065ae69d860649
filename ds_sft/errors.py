"""The errors a user can cause, each with the exit code it ends in."""

from collections.abc import Sequence

EXIT_USAGE = 2
EXIT_CONFIG = 64
EXIT_DATA = 65
EXIT_MISSING_INPUT = 66
EXIT_LAUNCH = 69
EXIT_BUG = 70
EXIT_OUT_OF_MEMORY = 71
EXIT_INPUT_OUTPUT = 74
EXIT_PREEMPTED = 75
EXIT_PERMISSION = 77


class DsSftError(Exception):
    """A fault in what the user gave us, told as "field, rule, value, what to do" lines.

    Args:
        *faults: One finished line for every fault that was found.
    """

    exit_code = EXIT_BUG

    def __init__(self, *faults: str) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


class UsageError(DsSftError):
    """A flag that does not exist, or a value that is not of the flag's type."""

    exit_code = EXIT_USAGE


class ConfigError(DsSftError):
    """Settings that contradict each other, the checkpoint or the machine."""

    exit_code = EXIT_CONFIG


class DataError(DsSftError):
    """A data file that cannot be read as conversations, or that teaches nothing."""

    exit_code = EXIT_DATA


class ModelError(DsSftError):
    """A model folder whose files are broken or do not fit each other."""

    exit_code = EXIT_DATA


class MissingInputError(DsSftError):
    """A file or folder that was named but does not exist."""

    exit_code = EXIT_MISSING_INPUT


class LaunchError(DsSftError):
    """A launch whose processes or hosts cannot work together."""

    exit_code = EXIT_LAUNCH


class SaveError(DsSftError):
    """An output that cannot be written."""

    exit_code = EXIT_INPUT_OUTPUT


class NumericsError(DsSftError):
    """A loss, gradient or weight that is no finite number."""

    exit_code = EXIT_DATA


class PreemptedError(DsSftError):
    """A run that was asked to stop; the same command goes on."""

    exit_code = EXIT_PREEMPTED


class JobError(DsSftError):
    """A job on several hosts that has failed.

    Args:
        code: Exit code of the host that is the cause.
        *faults: One finished line for every fault.
    """

    def __init__(self, code: int, *faults: str) -> None:
        super().__init__(*faults)
        self.exit_code = code


class PermissionRefusedError(DsSftError):
    """Something the operating system or our own safety rules do not allow."""

    exit_code = EXIT_PERMISSION


def raise_together(errors: Sequence[DsSftError]) -> None:
    """Raise one error that tells every fault, or do nothing when there is none.

    Args:
        errors: What was found; the first one decides the exit code.

    Raises:
        DsSftError: Of the first one's kind, when there is any.
    """
    if errors:
        raise type(errors[0])(*(fault for error in errors for fault in error.faults))
