"""After `import ds_sft`, transformers' auto classes know our models, whatever was imported first."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

KNOWN = """
import ds_sft
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
print(type(AutoConfig.from_pretrained({golden!r})).__name__)
print(type(AutoModelForCausalLM.from_pretrained({golden!r})).__name__)
print(type(AutoTokenizer.from_pretrained({tiny!r})).__name__)
"""
FIRST = [
    "import ds_sft",
    "from transformers import AutoModelForCausalLM, AutoTokenizer",
    "import ds_sft; from transformers import T5ForConditionalGeneration",
    "import ds_sft.families.yuan2.native.model",
    "from transformers import AutoConfig",
    "import ds_sft.families.yuan2.tokenizer",
    "import ds_sft.train",
]


def _run(program: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize("first", [*FIRST[:4], *(pytest.param(one, marks=pytest.mark.slow) for one in FIRST[4:])])
def test_the_auto_classes_know_a_family_that_transformers_has_not(first: str, tiny_yuan2: Path) -> None:
    golden = str(ROOT / "tests" / "golden" / "yuan2")
    found = _run(f"{first}\n{KNOWN.format(golden=golden, tiny=str(tiny_yuan2))}")
    assert found == ["Yuan2Config", "Yuan2ForCausalLM", "Yuan2Tokenizer"]


def test_the_import_alone_loads_nothing_heavy() -> None:
    heavy = "{'torch', 'transformers', 'deepspeed', 'numpy'}"
    assert _run(f"import sys, ds_sft; print(*sorted({heavy} & set(sys.modules)))") == []


def test_asking_for_a_config_loads_no_model() -> None:
    golden = str(ROOT / "tests" / "golden" / "yuan2")
    program = f"import sys, ds_sft; from transformers import AutoConfig; AutoConfig.from_pretrained({golden!r})"
    assert _run(f"{program}; print(any(name.endswith('native.model') for name in sys.modules))") == ["False"]
