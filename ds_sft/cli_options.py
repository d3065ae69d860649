"""Options that several verbs of `ds-sft` have."""

from typing import Annotated, Literal

import typer

MasterPort = Annotated[
    int, typer.Option("--master_port", "--master-port", min=1, max=65535, help="Port of the first host.")
]
BaseModel = Annotated[
    str | None,
    typer.Option("--model_name_or_path", "--model-name-or-path", help="The adapter's model, where it has moved."),
]
MaxNewTokens = Annotated[
    int, typer.Option("--max_new_tokens", "--max-new-tokens", min=1, help="Most tokens of an answer.")
]
Temperature = Annotated[
    float, typer.Option(help="0: the likeliest token each time; above it tokens are drawn, less surely the higher.")
]
TopP = Annotated[
    float, typer.Option("--top_p", "--top-p", help="Draw from the likeliest tokens of together this probability.")
]
Seed = Annotated[int, typer.Option(help="Of what is drawn.")]
MaxTokens = Annotated[
    int | None,
    typer.Option(
        "--model_max_length", "--model-max-length", min=2, help="Most tokens of a sequence; as trained by default."
    ),
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N; a GPU where there is one by default.")]
Dtype = Annotated[
    Literal["bf16", "fp16", "fp32"] | None,
    typer.Option(help="Number format; by default bf16 on a GPU and fp32 on a CPU."),
]
JsonFlag = Annotated[bool, typer.Option("--json", help="JSON on stdout instead of text.")]
AskedModel = Annotated[
    str, typer.Argument(help="A model, or an adapter: a folder or a name on the hub.", show_default=False)
]
MaxRestarts = Annotated[
    int, typer.Option("--max_restarts", "--max-restarts", min=0, help="Starts after hosts or ranks were lost.")
]
MinHosts = Annotated[
    int, typer.Option("--min_hosts", "--min-hosts", min=1, help="With fewer hosts it is not started again.")
]
PatienceSeconds = Annotated[
    int, typer.Option("--patience_seconds", "--patience-seconds", min=5, help="How long a host may be silent.")
]
StopSeconds = Annotated[
    int, typer.Option("--stop_seconds", "--stop-seconds", min=1, help="How long ranks may take to save and leave.")
]
NumGpus = Annotated[
    int | None, typer.Option("--num_gpus", "--num-gpus", min=1, help="Ranks on this host, without a hostfile.")
]
MasterAddr = Annotated[
    str | None, typer.Option("--master_addr", "--master-addr", help="Address of the first host, if not its name's.")
]
NumWorkers = Annotated[int, typer.Option("--num_workers", "--num-workers", min=0, help="Processes; 0 for one a core.")]
BatchSize = Annotated[
    int, typer.Option("--batch_size", "--batch-size", min=1, help="Questions side by side; changes no answer.")
]
NumData = Annotated[
    int, typer.Option("--num_data", "--num-data", help="The first so many conversations only; -1 for all.")
]
SaveDtype = Annotated[
    Literal["bf16", "fp16", "fp32"] | None,
    typer.Option("--save_dtype", "--save-dtype", help="Number format of the weights; as stored by default."),
]
