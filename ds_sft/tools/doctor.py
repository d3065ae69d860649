"""`ds-sft doctor`: says whether a job can work here and on other hosts, and if not, why not and what mends it."""

import json
import logging
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import msgspec
from rich.text import Text

from ds_sft.errors import DsSftError, LaunchError
from ds_sft.hosts.addresses import master_address
from ds_sft.hosts.hostfile import Host, read_hostfile
from ds_sft.hosts.remote import Remote, this_python
from ds_sft.tools.between_hosts import Seen, reduce_fact, same_facts, sharing_fact, way_facts
from ds_sft.tools.facts import Fact, as_lines, as_objects, fault, fault_in_words, faults_in, good
from ds_sft.tools.host_facts import Observed, env_facts, extensions_folders, facts_of, requirements
from ds_sft.tools.subject import Subject, subject_of

log = logging.getLogger(__name__)

PORT = 29500
THIS_HOST = (Host("localhost", 0),)
_MODULES = ("ds_sft.hosts.looking", "ds_sft.hosts.probe")
_SECONDS = 40.0


@dataclass(frozen=True)
class Examination:
    """What is to be looked at.

    Args:
        hosts: Of the job; `THIS_HOST` without others.
        master_addr: Address of the first host; None for what its name says.
        master_port: Its port.
        is_quick: Whether to leave out what takes long: the all-reduce.
    """

    hosts: tuple[Host, ...]
    master_addr: str | None
    master_port: int
    is_quick: bool


@dataclass(frozen=True)
class Report:
    """What was found.

    Args:
        facts: All of them.
        master_addr: Address of the first host.
        interfaces: Host -> network interface that leads to the others; without hosts that do not answer.
        num_gpus: Host -> number of GPUs.
        is_shared: Whether all hosts see one output folder.
    """

    facts: tuple[Fact, ...]
    master_addr: str
    interfaces: dict[str, str]
    num_gpus: dict[str, int]
    is_shared: bool


def doctor(
    arguments: Sequence[str], *, hostfile: Path | None, master_port: int, is_json: bool, is_quick: bool
) -> Iterator[str | Text]:
    """Look at this host, or at all hosts of a hostfile.

    Args:
        arguments: An optional YAML recipe, then flags of training.
        hostfile: Lines of `NAME slots=N`.
        master_port: Port of the first host.
        is_json: One JSON object instead of text.
        is_quick: Whether to leave out what takes long.

    Yields:
        Lines for stdout.

    Raises:
        LaunchError: When a fault was found.
    """
    hosts = read_hostfile(hostfile) if hostfile else THIS_HOST
    report = examine(subject_of(arguments), Examination(hosts, None, master_port, is_quick))
    if is_json:
        yield json.dumps({"facts": as_objects(report.facts)})
    else:
        yield from as_lines(report.facts)
    refuse_faults(report.facts)


def refuse_faults(facts: Sequence[Fact]) -> None:
    """Stop at faults.

    Args:
        facts: That were found.

    Raises:
        LaunchError: With the number of faults, when there are any.
    """
    num_faults = len(faults_in(facts))
    if num_faults:
        raise LaunchError(f"doctor: no line may begin with ✗, but {num_faults} do; do what stands behind the arrows")


def examine(subject: Subject, wanted: Examination) -> Report:
    """Look at all hosts in parallel.

    Args:
        subject: The job.
        wanted: What is to be looked at.

    Returns:
        What was found.
    """
    facts: list[Fact] = list(env_facts())
    try:
        master = wanted.master_addr or master_address(wanted.hosts)
    except DsSftError as error:
        facts += [fault_in_words("hosts", line) for line in error.faults]
        return Report(tuple(facts), "", {}, {}, is_shared=False)
    with ExitStack() as opened:
        seen: list[Seen] = []
        for host, found in zip(wanted.hosts, _look(wanted.hosts, subject, master, opened), strict=True):
            if isinstance(found, Seen):
                seen.append(found)
                facts += _named(facts_of(found.observed, requirements(), paths=subject.inputs), host, wanted.hosts)
            else:
                facts.append(found)
        is_shared = len(wanted.hosts) == 1
        if len(seen) == len(wanted.hosts) > 1:
            facts += _between(seen, subject, master, wanted)
            is_shared = any(fact.name == "output_dir" and fact.level == "good" for fact in facts)
        interfaces = {one.host.name: one.observed.interface for one in seen}
        num_gpus = {one.host.name: len(one.observed.gpus) for one in seen}
        return Report(tuple(facts), master, interfaces, num_gpus, is_shared)


def _between(seen: list[Seen], subject: Subject, master: str, wanted: Examination) -> Iterator[Fact]:
    try:
        facts = [
            *same_facts(seen, wanted=[one.name for one in requirements()], paths=subject.inputs),
            *way_facts(seen, master_addr=master, master_port=wanted.master_port),
        ]
        if subject.output_dir:
            facts.append(sharing_fact(seen, subject.output_dir))
        yield from facts
        if not wanted.is_quick and not faults_in(facts):
            yield reduce_fact(seen, master_addr=master, master_port=wanted.master_port)
    except LaunchError as error:
        yield from (fault(name, told, "look again") for name, told in (_parted(line) for line in error.faults))


def _look(hosts: Sequence[Host], subject: Subject, master: str, opened: ExitStack) -> list[Seen | Fact]:
    asked = {
        "packages": [one.name for one in requirements()],
        "paths": subject.inputs,
        "output_dir": subject.output_dir or str(Path.cwd()),
        "towards": master,
        "extensions": extensions_folders(),
    }

    def look(host: Host) -> Seen | Fact:
        try:
            remote = opened.enter_context(Remote(host.name, _MODULES, python=this_python()))
            remote.ask("hush", seconds=_SECONDS)
            began = time.time()
            answer = remote.ask("look", seconds=_SECONDS, **asked)
            ended = time.time()
        except LaunchError as error:
            name, told = _parted(error.faults[0])
            return fault(name, told, f"try: ssh -o BatchMode=yes {host.name} {this_python()} -V")
        observed = msgspec.convert(answer, Observed)
        middle, doubt = (began + ended) / 2, (ended - began) / 2
        return Seen(host, remote, observed, observed.time - middle, doubt)

    with ThreadPoolExecutor(len(hosts)) as pool:
        return list(pool.map(look, hosts))


def _named(facts: Iterator[Fact], host: Host, hosts: Sequence[Host]) -> Iterator[Fact]:
    """Put the host's name in front where there are several, and make one line of what is well there."""
    if len(hosts) == 1:
        yield from facts
        return
    found = list(facts)
    for fact in found:
        if fact.level != "good":
            yield Fact(host.name, fact.level, f"{fact.name}: {fact.told}", fact.fix)
    yield good(host.name, "; ".join(fact.told for fact in found if fact.level == "good"))


def _parted(line: str) -> tuple[str, str]:
    name, _, told = line.partition(": ")
    return name, told
