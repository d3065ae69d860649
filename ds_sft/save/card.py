"""The model card: what the checkpoint is and how to load it."""

from huggingface_hub import ModelCard, ModelCardData

from ds_sft import __version__
from ds_sft.contracts import Family

_TEXT = """---
{metadata}
---

# Fine-tuned {family}

{parameters:,} parameters, fine-tuned on conversations with ds_sft {version}.

## Load it

```python
from transformers import AutoTokenizer, {auto_class}
{knows}
tokenizer = AutoTokenizer.from_pretrained("PATH")
model = {auto_class}.from_pretrained("PATH")
messages = [{{"role": "user", "content": "..."}}]
prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
written = model.generate(**prompt, max_new_tokens=256)[0]
print(tokenizer.decode(written{answer}, skip_special_tokens=True))
```

{record}
"""

_OF_RUN = "The settings of the run are in `ds_sft.resolved.yaml`, its losses in `trainer_state.json`."
OF_MERGE = "It was made of an adapter and its model by `ds-sft merge`; the record of the run is with the adapter."

_ADAPTER_TEXT = """---
{metadata}
---

# Adapter for {family}

{parameters:,} parameters of LoRA adapters and new token rows, fine-tuned on conversations with ds_sft {version}.

{loading}
`ds-sft merge PATH --output_dir OUT` makes a model of its own of it.
"""

_LOADING = """## Load it

```python
from peft import PeftModel
from transformers import AutoTokenizer, {auto_class}
{knows}
tokenizer = AutoTokenizer.from_pretrained("PATH")
model = PeftModel.from_pretrained({auto_class}.from_pretrained("{base}"), "PATH")
```
"""

_CHANGED = (
    "It belongs to {base} with the table and the positions of `model_config.json`, which plain peft does not make: "
    "merge it.\n"
)


def model_card(*, family: Family, num_parameters: int, record: str = _OF_RUN) -> str:
    """Write the README.md of a checkpoint.

    Args:
        family: Card of the model.
        num_parameters: Of the whole model, shared ones once.
        record: The last sentence: where it comes from.

    Returns:
        Markdown with YAML front matter.
    """
    task = "text2text-generation" if family.is_encoder_decoder else "text-generation"
    data = ModelCardData(library_name="transformers", pipeline_tag=task, tags=["ds_sft", "deepspeed", family.name])
    content = _TEXT.format(
        metadata=data.to_yaml(),
        family=family.name,
        parameters=num_parameters,
        version=__version__,
        auto_class=_auto_class(family),
        knows=_knows(family),
        record=record,
        answer="" if family.is_encoder_decoder else '[prompt["input_ids"].shape[1] :]',
    )
    return str(ModelCard(content))


def adapter_card(*, family: Family, base: str, num_parameters: int, fits_plain_peft: bool) -> str:
    """Write the README.md of an adapter.

    Args:
        family: Card of the model.
        base: Folder or hub name of the model.
        num_parameters: Of the adapter.
        fits_plain_peft: Whether the model is as it is stored.

    Returns:
        Markdown with YAML front matter.
    """
    task = "text2text-generation" if family.is_encoder_decoder else "text-generation"
    tags = ["ds_sft", "deepspeed", "lora", family.name]
    data = ModelCardData(library_name="peft", pipeline_tag=task, tags=tags)
    loading = _LOADING if fits_plain_peft else _CHANGED
    content = _ADAPTER_TEXT.format(
        metadata=data.to_yaml(),
        family=family.name,
        parameters=num_parameters,
        version=__version__,
        loading=loading.format(auto_class=_auto_class(family), knows=_knows(family), base=base),
    )
    return str(ModelCard(content))


def _auto_class(family: Family) -> str:
    return "AutoModelForSeq2SeqLM" if family.is_encoder_decoder else "AutoModelForCausalLM"


def _knows(family: Family) -> str:
    return "import ds_sft  # makes these classes know the model\n" if family.auto_modules else ""
