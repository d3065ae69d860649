"""The plan in words and as JSON."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ds_sft.model.costs import Disk, num_parameters
from ds_sft.tools.plan.choices import RESERVED, Choice
from ds_sft.tools.plan.figures import UTILISATION, Data, Time
from ds_sft.tools.plan.job import Job
from ds_sft.tools.plan.memory import parts_of
from ds_sft.tools.plan.states import num_trained

_GB, _TERA = 1e9, 1e12
_HEADS = ("weights", "gradients", "optimizer", "activations", "loss", "buffers", "peak", "RAM/host")
_MINUTE, _HOUR = 60.0, 3600.0
_TWICE = 2


@dataclass(frozen=True)
class Plan:
    """What is foretold of a run.

    Args:
        job: The run.
        choices: The ways to spread it.
        gpu_memory: Bytes of one GPU; None when nobody said.
        data: Samples, or why there are none.
        time: Steps and operations.
        disk: What the run writes.
        peak_flops: Of a GPU, a second.
    """

    job: Job
    choices: Sequence[Choice]
    gpu_memory: float | None
    data: Data | str
    time: Time
    disk: Disk
    peak_flops: float

    @property
    def hours(self) -> tuple[float, float] | None:
        """The fewest and the most hours; None where steps are not known."""
        return self.time.hours(num_ranks=self.job.num_ranks, peak_flops=self.peak_flops)


def as_lines(plan: Plan) -> Iterator[str]:
    """Put a plan into words.

    Args:
        plan: The plan.

    Yields:
        Lines.
    """
    job, disk = plan.job, plan.disk
    trained, total = num_trained(job.shape, job.adapters), num_parameters(job.shape)
    kind = "full" if job.adapters is None else "QLoRA" if job.adapters.is_quantised else "LoRA"
    model = f"{job.model.model_name_or_path} ({job.family.name})"
    yield f"model: {model}, {trained:,} of {total:,} parameters train ({kind})"
    hosts = f" on {job.num_hosts} hosts" if job.num_hosts > 1 else ""
    yield f"batch: {batch_equation(job)}{hosts}, gradient checkpointing {told_switch(job.run.activation_checkpointing)}"
    yield ""
    yield f"{'GB on each GPU':<28}" + "".join(f"{head:>12}" for head in _HEADS)
    yield from (_row(choice, plan.gpu_memory) for choice in plan.choices)
    reserve = f", and {RESERVED / _GB:g} GB of each GPU stay free for CUDA" if plan.gpu_memory else ""
    yield f"peak: the fullest moment, so less than the sum, of tensors alone{reserve}; predicted"
    yield ""
    yield _told_data(plan)
    yield from _told_time(plan)
    kept = f"{disk.num_checkpoints} checkpoints x {disk.checkpoint / _GB:.1f} GB"
    yield f"disk: {disk.most / _GB:.1f} GB at most = export {disk.exported / _GB:.1f} GB + {kept}"


def as_dict(plan: Plan) -> dict[str, Any]:
    """Give a plan as plain data.

    Args:
        plan: The plan.

    Returns:
        Sizes in bytes.
    """
    job, (micro, *_) = plan.job, plan.job.budgets
    accumulation, ranks = job.run.gradient_accumulation_steps, job.num_ranks
    return {
        "model": job.model.model_name_or_path,
        "family": job.family.name,
        "parameters": num_parameters(job.shape),
        "trained_parameters": num_trained(job.shape, job.adapters),
        "num_gpus": ranks,
        "num_hosts": job.num_hosts,
        "gpu_memory": None if plan.gpu_memory is None else round(plan.gpu_memory),
        "reserved": round(RESERVED),
        "batch": {
            "micro": micro,
            "accumulation": accumulation,
            "ranks": ranks,
            "size": micro * accumulation * ranks,
        },
        "ways": [_way(choice, plan.gpu_memory) for choice in plan.choices],
        "why_no_data": plan.data if isinstance(plan.data, str) else None,
        "steps": plan.time.steps,
        "flops_of_step": plan.time.flops_of_step,
        "peak_flops": plan.peak_flops,
        "hours": plan.hours,
        "disk": {**asdict(plan.disk), "most": plan.disk.most},
    }


def batch_equation(job: Job) -> str:
    """Tell the tokens of a step.

    Args:
        job: The run.

    Returns:
        Such as `131,072 tokens at most = 8192 micro x 2 accumulate x 8 GPUs`.
    """
    micro, accumulation = job.budgets[0], job.run.gradient_accumulation_steps
    unit = "source tokens" if job.family.is_encoder_decoder else "tokens"
    size = micro * accumulation * job.num_ranks
    return f"{size:,} {unit} at most = {micro} micro x {accumulation} accumulate x {job.num_ranks} GPUs"


def missing(choice: Choice, gpu_memory: float) -> str:
    """Tell whether a way fits.

    Args:
        choice: The way.
        gpu_memory: Bytes of one GPU.

    Returns:
        `fits` or `3.1 GB short`.
    """
    short = choice.short(gpu_memory)
    # Nobody must read that 0.0 GB are missing.
    return "fits" if short <= 0 else f"{max(0.1, short / _GB):.1f} GB short"


def told_switch(is_on: bool | None) -> str:
    """Tell a switch.

    Args:
        is_on: Its state.

    Returns:
        `on` or `off`.
    """
    return "on" if is_on else "off"


def _way(choice: Choice, gpu_memory: float | None) -> dict[str, Any]:
    return {
        "name": choice.name,
        "is_asked": choice.is_asked,
        **{name: round(size) for name, size in asdict(choice.memory).items()},
        "host_total": round(choice.host_memory),
        "missing": None if gpu_memory is None else max(0, round(choice.short(gpu_memory))),
    }


def _row(choice: Choice, gpu_memory: float | None) -> str:
    sizes = [*parts_of(choice.memory), choice.memory.peak, choice.host_memory]
    verdict = "" if gpu_memory is None else f"  {missing(choice, gpu_memory)}"
    mark = "> " if choice.is_asked else "  "
    return f"{mark}{choice.name:<26}" + "".join(f"{size / _GB:>12.1f}" for size in sizes) + verdict


def _told_data(plan: Plan) -> str:
    data = plan.data
    if isinstance(data, str):
        return f"data: {data}, so samples are taken to be {plan.job.max_tokens} tokens long and all supervised"
    share = data.num_supervised / max(1, data.num_tokens)
    return f"data: {len(data.targets):,} samples, {data.num_tokens:,} tokens an epoch, {share:.1%} supervised"


def _told_time(plan: Plan) -> Iterator[str]:
    time, run = plan.time, plan.job.run
    used = " to ".join(f"{share:.0%}" for share in UTILISATION)
    assumed = f"{plan.peak_flops / _TERA:g} TFLOP/s a GPU (--peak_tflops), {used} of them used"
    told = f"{time.flops_of_step:.2e} operations a step, {assumed}"
    if plan.hours is None:
        seconds = time.flops_of_step / (plan.job.num_ranks * plan.peak_flops)
        yield f"time: {_span(seconds / max(UTILISATION))} to {_span(seconds / min(UTILISATION))} a step; {told}"
        return
    epochs = "" if run.max_steps > 0 else f" in {run.num_train_epochs:g} epochs"
    yield f"steps: about {time.steps:,}{epochs}"
    least, most = plan.hours
    yield f"time: {_span(least * _HOUR)} to {_span(most * _HOUR)}; {told}"


def _span(seconds: float) -> str:
    if seconds < _TWICE * _MINUTE:
        return f"{seconds:.1f} s"
    return f"{seconds / _MINUTE:.0f} min" if seconds < _TWICE * _HOUR else f"{seconds / _HOUR:.1f} h"
