"""`ds-sft`: the verbs; each loads what it needs when it runs, so that help comes at once and loads no torch."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from ds_sft import __version__
from ds_sft.cli_options import (
    AskedModel,
    BaseModel,
    BatchSize,
    Device,
    Dtype,
    JsonFlag,
    MasterAddr,
    MasterPort,
    MaxNewTokens,
    MaxRestarts,
    MaxTokens,
    MinHosts,
    NumData,
    NumGpus,
    NumWorkers,
    PatienceSeconds,
    SaveDtype,
    Seed,
    StopSeconds,
    Temperature,
    TopP,
)
from ds_sft.reporting import run, set_up_logging
from ds_sft.terminal import is_coloured, show, show_at_once, typed
from ds_sft.tools.flags import flag_help

_FLAGS_OF_TRAINING = {"allow_extra_args": True, "ignore_unknown_options": True}
_USAGE = "[RECIPE] [FLAGS] [OPTIONS]"

app = typer.Typer(
    help="Fine-tune on conversations under DeepSpeed, and look at the data before.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def show_version(
    *, version: Annotated[bool, typer.Option("--version", help="Show the version and leave.")] = False
) -> None:
    """Answer what is asked of the program itself."""
    if version:
        typer.echo(__version__)
        raise typer.Exit


@app.command(context_settings=_FLAGS_OF_TRAINING, add_help_option=False)
def train(context: typer.Context) -> None:
    """Fine-tune: the main job with all its flags, told by: ds-sft train --help."""
    from ds_sft.train import STOP
    from ds_sft.train import main as main_job

    sys.argv = ["ds-sft train", *context.args]
    with STOP:
        main_job()


@app.command(context_settings=_FLAGS_OF_TRAINING, options_metavar=_USAGE, epilog=flag_help())
def validate(
    context: typer.Context,
    *,
    json: JsonFlag = False,
    num_workers: NumWorkers = 0,
) -> None:
    """Look at every record of the data and tell what training would make of it."""
    from ds_sft.tools.validate import Effort
    from ds_sft.tools.validate import validate as lines

    set_up_logging()
    show(lines(context.args, Effort(is_json=json, num_workers=num_workers)))


@app.command(context_settings=_FLAGS_OF_TRAINING, options_metavar=_USAGE, epilog=flag_help())
def preview(
    context: typer.Context,
    *,
    num: Annotated[int, typer.Option("--num", "-n", min=1, help="Most samples to show.")] = 5,
    json: JsonFlag = False,
    html: Annotated[Path | None, typer.Option(help="Write one page with the samples here instead.")] = None,
) -> None:
    """Show the first samples, and which of their tokens are trained."""
    from ds_sft.tools.preview import Look
    from ds_sft.tools.preview import preview as lines

    set_up_logging()
    look = Look(num=num, is_json=json, is_coloured=is_coloured(), page=html)
    show(lines(context.args, look))


@app.command(context_settings=_FLAGS_OF_TRAINING, options_metavar=_USAGE)
def launch(  # noqa: PLR0913, PLR0917  # its flags
    context: typer.Context,
    hostfile: Annotated[Path | None, typer.Option(help="Lines of `NAME slots=N`; this host alone without it.")] = None,
    num_gpus: NumGpus = None,
    master_addr: MasterAddr = None,
    master_port: MasterPort = 29500,
    max_restarts: MaxRestarts = 0,
    min_hosts: MinHosts = 1,
    patience_seconds: PatienceSeconds = 20,
    stop_seconds: StopSeconds = 120,
    *,
    dry_run: Annotated[bool, typer.Option("--dry_run", "--dry-run", help="Print the commands of all hosts.")] = False,
) -> None:
    """Run a job on all hosts: look at them, start it, watch it, and start it again after a loss."""
    from ds_sft.hosts.supervise import Patience
    from ds_sft.tools.launch import Wish
    from ds_sft.tools.launch import launch as lines

    set_up_logging()
    patience = Patience(patience_seconds, stop_seconds)
    wish = Wish(hostfile, num_gpus, master_addr, master_port, max_restarts, min_hosts, patience, dry_run)
    show(lines(context.args, wish))


@app.command(context_settings=_FLAGS_OF_TRAINING, options_metavar=_USAGE)
def doctor(
    context: typer.Context,
    *,
    hostfile: Annotated[Path | None, typer.Option(help="Hosts to look at: lines of `NAME slots=N`.")] = None,
    recipe: Annotated[Path | None, typer.Option(help="Recipe of the job; it may also stand first.")] = None,
    master_port: MasterPort = 29500,
    quick: Annotated[bool, typer.Option("--quick", help="Leave out the all-reduce between hosts.")] = False,
    json: JsonFlag = False,
) -> None:
    """Tell whether a job can work here, or on the hosts of a hostfile, and what to mend if not."""
    from ds_sft.tools.doctor import doctor as lines

    set_up_logging()
    words = [*([str(recipe)] if recipe else ()), *context.args]
    show(lines(words, hostfile=hostfile, master_port=master_port, is_json=json, is_quick=quick))


@app.command()
def merge(  # its flags
    adapter: Annotated[Path, typer.Argument(help="Folder of the adapter.", show_default=False)],
    output_dir: Annotated[Path, typer.Option("--output_dir", "--output-dir", help="Folder of the new model.")],
    model: Annotated[
        str | None,
        typer.Option("--model_name_or_path", "--model-name-or-path", help="The model, where it has moved."),
    ] = None,
    save_dtype: SaveDtype = None,
    max_shard_size: Annotated[str, typer.Option("--max_shard_size", "--max-shard-size", help="Largest file.")] = "5GB",
    *,
    json: JsonFlag = False,
) -> None:
    """Make a model of its own of an adapter and its model, weight by weight."""
    from ds_sft.tools.merge import Request
    from ds_sft.tools.merge import merge as lines

    set_up_logging()
    show(lines(Request(adapter, output_dir, model, save_dtype, max_shard_size, is_json=json)))


@app.command()
def generate(  # noqa: PLR0913, PLR0917  # its flags
    model: AskedModel,
    data_path: Annotated[Path, typer.Option("--data_path", "--data-path", help="Conversations; their last questions.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="File for the answers: one JSON object a line.")],
    base: BaseModel = None,
    num_data: NumData = -1,
    max_new_tokens: MaxNewTokens = 256,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    seed: Seed = 0,
    batch_size: BatchSize = 8,
    model_max_length: MaxTokens = None,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Answer the last question of every conversation of a file; the same command goes on after an interruption."""
    from ds_sft.tools.asking import Asking
    from ds_sft.tools.generate import Request
    from ds_sft.tools.generate import generate as lines

    set_up_logging()
    asking = Asking(max_new_tokens, temperature, top_p, seed, model_max_length, device, dtype, base)
    show(lines(Request(model, data_path, output, asking, batch_size, num_data)))


@app.command()
def chat(  # noqa: PLR0913, PLR0917  # its flags
    model: AskedModel,
    base: BaseModel = None,
    system: Annotated[str | None, typer.Option(help="Text in front of the conversation.")] = None,
    max_new_tokens: MaxNewTokens = 512,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    seed: Seed = 0,
    model_max_length: MaxTokens = None,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Talk with a model; without a terminal every line of stdin is a question."""
    from ds_sft.tools.asking import Asking
    from ds_sft.tools.chat import Request
    from ds_sft.tools.chat import chat as talk

    set_up_logging()
    asking = Asking(max_new_tokens, temperature, top_p, seed, model_max_length, device, dtype, base)
    talk(Request(model, asking, system), typed(), show_at_once)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="output_dir of a run, also of one that crashed.", show_default=False)],
    output_dir: Annotated[
        Path | None, typer.Option("--output_dir", "--output-dir", help="Folder of the report; the run's by default.")
    ] = None,
    num_samples: Annotated[
        int, typer.Option("--num_samples", "--num-samples", min=0, help="Most samples to show.")
    ] = 200,
    *,
    json: JsonFlag = False,
) -> None:
    """Tell what a run was and what happened in it: one page, one picture, one JSON file."""
    from ds_sft.tools.run_report.report import Wanted
    from ds_sft.tools.run_report.report import report as lines

    set_up_logging()
    show(lines(Wanted(folder, output_dir, num_samples, is_json=json)))


@app.command(context_settings=_FLAGS_OF_TRAINING, options_metavar=_USAGE)
def plan(  # its flags
    context: typer.Context,
    gpus: Annotated[
        int | None, typer.Option("--gpus", min=1, help="GPUs in all; those a shipped recipe is for, or one.")
    ] = None,
    gpu_memory: Annotated[
        str | None, typer.Option("--gpu_memory", "--gpu-memory", help="Of one GPU, such as 24GB; tells what fits.")
    ] = None,
    hosts: Annotated[int, typer.Option("--hosts", min=1, help="Hosts that share the GPUs.")] = 1,
    peak_tflops: Annotated[
        float, typer.Option("--peak_tflops", "--peak-tflops", min=0.001, help="Of one GPU, for the time.")
    ] = 300.0,
    fit: Annotated[str | None, typer.Option("--fit", help="Find the cheapest way that fits into such a GPU.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="With --fit: file for it as a recipe.")] = None,
    *,
    json: JsonFlag = False,
) -> None:
    """Tell the memory, steps, disk and time of a run before it is one."""
    from ds_sft.tools.plan.plan import Machines, refuse_fit_without_size
    from ds_sft.tools.plan.plan import fit as fitted
    from ds_sft.tools.plan.plan import plan as lines

    set_up_logging()
    machines = Machines(gpus, fit or gpu_memory, hosts, peak_tflops)
    refuse_fit_without_size(fit, gpu_memory=gpu_memory, output=output, is_json=json)
    show(fitted(context.args, machines, output=output) if fit else lines(context.args, machines, is_json=json))


@app.command()
def recipes(*, json: JsonFlag = False) -> None:
    """List the complete runs that are shipped."""
    from ds_sft.tools.recipes import recipes as lines

    set_up_logging()
    show(lines(is_json=json))


@app.command()
def init(
    recipe: Annotated[str, typer.Argument(help="A name that `ds-sft recipes` lists.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="File for the copy.")],
) -> None:
    """Copy a recipe, to be changed and given to the other verbs."""
    from ds_sft.tools.recipes import init as copy

    set_up_logging()
    copy(recipe, output)


@app.command(context_settings=_FLAGS_OF_TRAINING, add_help_option=False)
def bench(context: typer.Context) -> None:
    """Measure training beside other trainers, with the flags of: python -m benchmarks.run --help."""
    from ds_sft.tools.bench import bench as run_benchmark

    raise typer.Exit(run_benchmark(context.args))


def main() -> None:
    """Run a verb and leave with a documented exit code."""
    run(app)


if __name__ == "__main__":
    main()
