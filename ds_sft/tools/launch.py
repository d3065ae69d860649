"""`ds-sft launch`: looks at the hosts, starts the job on all of them, watches it, and starts it again after a loss."""

import logging
import os
import re
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import ds_sft
from ds_sft.errors import EXIT_PREEMPTED, ConfigError, JobError, LaunchError, PreemptedError
from ds_sft.hosts.env_file import env_files, is_secret, variables_of
from ds_sft.hosts.hostfile import Host, read_hostfile
from ds_sft.hosts.remote import this_python
from ds_sft.hosts.supervise import Patience, Task, supervise
from ds_sft.preemption import StopRequest
from ds_sft.tools.between_hosts import socket_variables
from ds_sft.tools.doctor import Examination, Report, examine, refuse_faults
from ds_sft.tools.facts import as_lines, faults_in
from ds_sft.tools.subject import subject_of

log = logging.getLogger(__name__)

_TRAVELS = re.compile(
    r"(PYTHON|NCCL_|GLOO_|TORCH_|OMP_|MKL_|DS_|DEEPSPEED_|HF_|TRANSFORMERS_|TOKENIZERS_|UCX_|CUDA_LAUNCH)\w*"
)
_FIRST_PAUSE_SECONDS = 5.0
_LONGEST_PAUSE_SECONDS = 60.0
_RETURN_SECONDS = 20.0
"""How long a lost host may take to answer again, before the job goes on without it."""


@dataclass(frozen=True)
class Wish:
    """How a job is to be launched.

    Args:
        hostfile: Lines of `NAME slots=N`; None for this host alone.
        num_ranks: On this host, without a hostfile; None for one a GPU.
        master_addr: Address of the first host; None for what its name says.
        master_port: Its port.
        max_restarts: How often the job is started again after hosts or ranks were lost.
        min_hosts: With fewer it is not started again.
        patience: How long to wait.
        is_dry_run: Whether to print the commands instead.
    """

    hostfile: Path | None
    num_ranks: int | None
    master_addr: str | None
    master_port: int
    max_restarts: int
    min_hosts: int
    patience: Patience
    is_dry_run: bool


def launch(arguments: Sequence[str], wish: Wish) -> list[str]:
    """Run a job on all hosts.

    Args:
        arguments: An optional YAML recipe, then flags of training.
        wish: How.

    Returns:
        Lines for stdout: the commands of a dry run.

    Raises:
        LaunchError: When a host cannot take part.
        JobError: When the job has failed.
        PreemptedError: When it was asked to stop.
    """
    _refuse(wish)
    hosts = read_hostfile(wish.hostfile) if wish.hostfile else (Host("localhost", wish.num_ranks or 0),)
    if wish.is_dry_run:
        report = Report((), wish.master_addr or hosts[0].name, {}, num_gpus={}, is_shared=True)
        tasks = _tasks(hosts, report, arguments, wish)
        return [f"{task.host} ranks {' '.join(map(str, task.ranks))}: {shlex.join(task.command)}" for task in tasks]
    with StopRequest() as stop:
        stop.defer()
        report = _looked_at(hosts, arguments, wish)
        _run(hosts, report, arguments, wish, stop)
    return []


def _run(hosts: tuple[Host, ...], report: Report, arguments: Sequence[str], wish: Wish, stop: StopRequest) -> None:
    """Run the job, and again as often as it may be."""
    pause = _FIRST_PAUSE_SECONDS
    for num_left in range(wish.max_restarts, -1, -1):
        outcome = supervise(
            _tasks(hosts, report, arguments, wish),
            python=this_python(),
            cwd=str(Path.cwd()),
            patience=wish.patience,
            is_stop_asked=lambda: stop.reason is not None,
        )
        if stop.reason and outcome.code in (0, EXIT_PREEMPTED):
            raise PreemptedError(f"the job was asked to stop ({stop.reason}); the same command goes on")
        if not outcome.code:
            return
        if not outcome.is_worth_another_try or not num_left or stop.reason:
            raise JobError(outcome.code, f"{outcome.told}; all hosts were stopped")
        log.warning(
            "%s; starting again in %.0f s, %d of %d restarts are left",
            outcome.told,
            pause,
            num_left - 1,
            wish.max_restarts,
        )
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
        hosts, report = _hosts_that_are_left(hosts, arguments, wish, report)


def _hosts_that_are_left(
    hosts: tuple[Host, ...], arguments: Sequence[str], wish: Wish, before: Report
) -> tuple[tuple[Host, ...], Report]:
    """Wait for lost hosts to come back, and go on without those that do not."""
    until = time.monotonic() + _RETURN_SECONDS
    while True:
        report = _examined(hosts, arguments, wish)
        if not faults_in(report.facts):
            return hosts, report
        if time.monotonic() >= until:
            break
    left = tuple(host for host in hosts if host.name in report.interfaces)
    if len(left) == len(hosts):
        refuse_faults(_shown(report).facts)
    if len(left) < wish.min_hosts or not before.is_shared:
        why = "output_dir is not shared by all hosts" if not before.is_shared else f"min_hosts is {wish.min_hosts}"
        _shown(report)
        raise LaunchError(f"hosts: {len(left)} of {len(hosts)} are left, but {why}; mend the others and launch again")
    log.warning(
        "hosts: %d -> %d, because the others do not answer: %s",
        len(hosts),
        len(left),
        " ".join(host.name for host in left),
    )
    return left, _looked_at(left, arguments, wish)


def _looked_at(hosts: tuple[Host, ...], arguments: Sequence[str], wish: Wish) -> Report:
    report = _shown(_examined(hosts, arguments, wish))
    refuse_faults(report.facts)
    return report


def _examined(hosts: tuple[Host, ...], arguments: Sequence[str], wish: Wish) -> Report:
    return examine(subject_of(arguments), Examination(hosts, wish.master_addr, wish.master_port, is_quick=True))


def _shown(report: Report) -> Report:
    for line in as_lines(report.facts):
        log.info("%s", line.plain)
    return report


def _tasks(hosts: Sequence[Host], report: Report, arguments: Sequence[str], wish: Wish) -> list[Task]:
    """Say what each host does: a rank for each slot, numbered in the order of the hosts."""
    slots = [host.slots or report.num_gpus.get(host.name, 0) or 1 for host in hosts]
    train = str(Path(ds_sft.__file__).parent / "train.py")
    shared = {"MASTER_ADDR": report.master_addr, "MASTER_PORT": str(wish.master_port), **_variables()}
    if not any(report.num_gpus.values()):
        shared["DS_ACCELERATOR"] = "cpu"
    return [
        Task(
            host.name,
            (this_python(), "-u", train, *arguments),
            socket_variables(report.interfaces.get(host.name, "") if len(hosts) > 1 else "") | shared,
            tuple(range(sum(slots[:place]), sum(slots[: place + 1]))),
            sum(slots),
        )
        for place, host in enumerate(hosts)
    ]


def _variables() -> dict[str, str]:
    """Give the variables that travel to all hosts: through a pipe, so that no `ps` shows them."""
    own = {name: value for name, value in os.environ.items() if _TRAVELS.fullmatch(name) and not is_secret(name, value)}
    return own | {name: value for path in env_files() for name, value in variables_of(path).items()}


def _refuse(wish: Wish) -> None:
    if wish.hostfile and wish.num_ranks:
        raise ConfigError(
            f"num_gpus: must not be given with a hostfile, but is {wish.num_ranks}; write slots into {wish.hostfile}"
        )
