"""Every error ends in its documented exit code and keeps each fault as a line of its own."""

import pytest

from ds_sft import errors
from ds_sft.errors import ConfigError, DataError, DsSftError, MissingInputError, raise_together


def test_the_exit_codes_are_those_of_the_documentation() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, DsSftError)]
    assert {kind.__name__: kind.exit_code for kind in kinds} == {
        "DsSftError": 70,
        "UsageError": 2,
        "ConfigError": 64,
        "DataError": 65,
        "ModelError": 65,
        "MissingInputError": 66,
        "LaunchError": 69,
        "SaveError": 74,
        "NumericsError": 65,
        "PreemptedError": 75,
        "JobError": 70,
        "PermissionRefusedError": 77,
    }
    assert errors.EXIT_OUT_OF_MEMORY == 71


def test_a_job_on_several_hosts_ends_with_the_code_of_its_cause() -> None:
    assert errors.JobError(65, "h1: data: broken").exit_code == 65


def test_an_error_tells_every_fault_on_a_line() -> None:
    error = ConfigError("one", "two")
    assert (str(error), error.faults) == ("one\ntwo", ("one", "two"))


def test_the_first_error_decides_the_kind_and_all_faults_are_told() -> None:
    with pytest.raises(MissingInputError) as caught:
        raise_together([MissingInputError("a"), ConfigError("b", "c"), DataError("d")])
    assert caught.value.faults == ("a", "b", "c", "d")


def test_without_an_error_nothing_is_raised() -> None:
    raise_together([])
