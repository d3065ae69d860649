"""Every launcher prints the exact command it would run, and refuses what it cannot run."""

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT

TRAIN = str(ROOT / "ds_sft" / "train.py")
BIN = str(ROOT / ".venv" / "bin")
WORDS = ["recipe.yaml", "--output_dir", "a b"]
MULTI = ["deepspeed", "--hostfile", "HOSTFILE", "--master_addr", "127.0.0.1", "--master_port", "1234"]
TASK = (
    '(trap "" USR1; exec "$@") & child=$!; trap "pkill -USR1 -P $child" USR1; '
    "while wait $child; code=$?; kill -0 $child 2> /dev/null; do :; done; exit $code"
)
COMMANDS = {
    "single_gpu_lora.sh MODEL DATA OUT --x y": [
        *("python", "TRAIN", "--model_name_or_path", "MODEL", "--data_path", "DATA", "--output_dir", "OUT"),
        *("--lora_r", "16", "--lora_alpha", "32", "--learning_rate", "2e-4", "--lr_scheduler_type", "cosine"),
        *("--warmup_steps", "0.03", "--gradient_checkpointing", "True", "--x", "y"),
    ],
    "single_node.sh": ["deepspeed", "--num_gpus", "3", "--master_port", "1234", "TRAIN", *WORDS],
    "multi_node.sh HOSTFILE": [*MULTI, "--launcher", "pdsh", "TRAIN", *WORDS],
    "multi_node.sh --launcher openmpi HOSTFILE": [
        *(*MULTI, "--launcher", "openmpi", "--launcher_args", "--bind-to none", "TRAIN", *WORDS)
    ],
    "multi_node.sh --launcher no_ssh HOSTFILE": [*MULTI, "--no_ssh", "--node_rank", "0", "TRAIN", *WORDS],
    "multi_node.sh --launcher torchrun HOSTFILE": [
        *("torchrun", "--nnodes", "1", "--nproc_per_node", "2", "--node_rank", "0", "--rdzv_backend", "c10d"),
        *("--rdzv_endpoint", "127.0.0.1:1234", "--rdzv_id", "ds_sft", "--local_addr", "127.0.0.1", "TRAIN", *WORDS),
    ],
    "slurm.sbatch": [
        *("srun", "--kill-on-bad-exit=1", "bash", "-c", TASK, "task", "torchrun"),
        *("--nnodes", "2", "--nproc_per_node", "3", "--rdzv_backend", "c10d", "--rdzv_endpoint", "n1:1234"),
        *("--rdzv_id", "77", "TRAIN", *WORDS),
    ],
}


def launcher(script: str, *words: str, folder: Path = ROOT) -> tuple[int, str, str]:
    """Run a launcher; give its exit code, stdout and stderr."""
    variables = {
        "MASTER_PORT": "1234", "NUM_GPUS": "3", "MPI_ARGS": "--bind-to none", "NPROC_PER_NODE": "3",
        "SLURM_JOB_NUM_NODES": "2", "SLURMD_NODENAME": "n1", "SLURM_JOB_ID": "77", "SLURM_SUBMIT_DIR": str(ROOT),
    }  # fmt: skip
    done = subprocess.run(
        ["bash", str(ROOT / "launchers" / script), *words],
        cwd=folder, env=os.environ | variables, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def hostfile(tmp_path: Path) -> Path:
    """A hostfile of this host alone."""
    file = tmp_path / "hosts"
    file.write_text("localhost slots=2\n")
    return file


@pytest.mark.parametrize("asked", COMMANDS)
def test_a_dry_run_prints_the_exact_command(asked: str, hostfile: Path) -> None:
    script, *words = asked.replace("HOSTFILE", str(hostfile)).split()
    own = [] if script == "single_gpu_lora.sh" else WORDS
    code, out, err = launcher(script, "--dry-run", *words, *own)
    named = {
        "TRAIN": TRAIN,
        "HOSTFILE": str(hostfile),
        **{name: f"{BIN}/{name}" for name in ("python", "deepspeed", "torchrun")},
    }
    assert (code, shlex.split(out), err) == (0, [named.get(word, word) for word in COMMANDS[asked]], "")


def test_every_launcher_is_run_dry() -> None:
    scripts = {file.name for file in (ROOT / "launchers").iterdir() if file.suffix in {".sh", ".sbatch"}}
    assert scripts - {asked.split()[0] for asked in COMMANDS} == {"env.sh", "quickstart.sh"}


@pytest.mark.parametrize(
    "word", ["$(touch canary)", "`touch canary`", "a;touch canary", "'x'", 'a"b', "a\nb", "", "*", "&"]
)
def test_a_word_that_the_shells_of_the_hosts_would_obey_is_refused(word: str, hostfile: Path, tmp_path: Path) -> None:
    code, out, err = launcher("multi_node.sh", "--dry-run", str(hostfile), "--output_dir", word, folder=tmp_path)
    assert (code, out) == (64, "")
    assert err.startswith("error: command line: pdsh hands every word to a shell on every host, but ")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["hosts"]


def test_a_folder_that_the_shells_of_the_hosts_would_obey_is_refused(hostfile: Path, tmp_path: Path) -> None:
    folder = tmp_path / "a;touch canary"
    folder.mkdir()
    assert launcher("multi_node.sh", "--dry-run", str(hostfile), "r.yaml", folder=folder)[0] == 64
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("-oProxyCommand=touch slots=1\n", "hosts:1: a host must be a name"),
        ("localhost slots=1\nno-such-host.invalid slots=1\n", "hosts: no-such-host.invalid must have an IPv4 address"),
    ],
)
def test_a_hostfile_that_cannot_work_ends_with_its_line(text: str, fault: str, hostfile: Path) -> None:
    hostfile.write_text(text)
    code, out, err = launcher("multi_node.sh", "--dry-run", str(hostfile), "r.yaml")
    assert (code in {64, 69}, out) == (True, "")
    assert re.match(rf"error: .*{re.escape(fault)}", err)


def test_a_secret_in_deepspeed_env_stops_the_launch(hostfile: Path, tmp_path: Path) -> None:
    (tmp_path / ".deepspeed_env").write_text("HF_TOKEN=abc\n")
    code, out, err = launcher("multi_node.sh", "--dry-run", str(hostfile), "r.yaml", folder=tmp_path)
    assert (code, out) == (64, "")
    assert ".deepspeed_env:1: must hold no secret, but HF_TOKEN looks like one" in err


@pytest.mark.parametrize("name", ["no_ssh", "torchrun"])
def test_a_host_that_is_not_in_the_file_is_told_so(name: str, hostfile: Path) -> None:
    hostfile.write_text("192.0.2.1 slots=1\n")
    code, _, err = launcher("multi_node.sh", "--dry-run", "--launcher", name, str(hostfile), "r.yaml")
    assert code == 64
    assert "hostfile: must name this host" in err


@pytest.mark.parametrize(
    "words",
    [
        ["single_node.sh"],
        ["multi_node.sh", "x"],
        ["slurm.sbatch"],
        ["multi_node.sh", "--launcher", "rsh", "HOSTFILE", "r"],
    ],
)
def test_a_command_line_of_another_form_is_a_usage_fault(words: list[str], hostfile: Path) -> None:
    script, *others = (word.replace("HOSTFILE", str(hostfile)) for word in words)
    code, out, err = launcher(script, "--dry-run", *others)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
