"""The training benchmark: what it counts, what it refuses, and that the pages say what was measured."""

import gc
import json
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import Trainer
from typer.testing import CliRunner

from benchmarks import counting
from benchmarks.comparing import UnequalError, compare, ratio_of, refuse_unequal
from benchmarks.counting import useful_flops
from benchmarks.measuring import Timed
from benchmarks.run import fresh_processes
from benchmarks.run import main as run_benchmark
from benchmarks.tables import PAGES, PLANNED, Goal, committed, goals, tables, with_plan, with_tables
from benchmarks.variants import VARIANTS, Run, Variant, padded, variants_of
from benchmarks.workloads import SUITES, Samples, Workload, samples_of
from ds_sft.cli import app
from ds_sft.contracts import IGNORE_INDEX
from ds_sft.data.samples import num_shared
from ds_sft.errors import ConfigError, MissingInputError
from ds_sft.tools.bench import bench

YUAN2: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
}
T5: dict[str, Any] = {
    "vocab_size": 50,
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 24,
    "num_layers": 2,
    "num_heads": 2,
    "dropout_rate": 0.0,
    "decoder_start_token_id": 0,
}
WORKLOADS = {
    "yuan2": Workload("tiny", "yuan2", YUAN2, max_length=32, batch_size=2, num_samples=6, fill=0.5),
    "flan_t5": Workload(
        "tiny", "flan_t5", T5, max_length=32, batch_size=2, num_samples=6, fill=0.5, baseline="hf_grouped"
    ),
}


SPLIT = Workload("split", "yuan2", YUAN2, 64, 2, 4, fill=0.2, baseline="flat_split", turns=3.0)


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No second for a product that measures the machine, and none for each collection of what pytest has imported."""
    monkeypatch.setitem(counting._SIZE, "cpu", 64)
    gc.freeze()
    yield
    gc.unfreeze()


def here(act: Callable[..., Any], *given: Any) -> Any:
    """Measure in this process: only the harness is looked at."""
    with warnings.catch_warnings(action="ignore"):
        return act(*given)


def samples(lengths: list[tuple[int, int]], *, has_sources: bool) -> Samples:
    """Give samples of so many tokens, the last so many of them supervised."""
    rows = []
    for length, supervised in lengths:
        ids = np.arange(length, dtype=np.int32)
        labels = ids[-supervised:] if has_sources else np.where(ids < length - supervised, IGNORE_INDEX, ids)
        rows.append({"input_ids": ids, "labels": labels})
    return Samples(rows, has_sources=has_sources)


@pytest.mark.parametrize("family", WORKLOADS)
def test_every_variant_of_a_tiny_workload_is_measured_on_equal_gradients(family: str) -> None:
    lines: list[str] = []
    found = compare(WORKLOADS[family], VARIANTS[family], execute=here, seed=1, rounds=2, tell=lines.append)
    rows = {row["variant"]: row for row in found["rows"]}
    assert list(rows) == ["fastchat", "hf_grouped", "ours_same_steps", "ours"]
    assert all(row["grad_err"] < 1e-5 and len(row["seconds"]) == 2 and row["sup_tok_s"] > 0 for row in rows.values())
    assert [rows[name]["pad_share"] for name in ("ours", "ours_same_steps")] == [0, 0]
    assert rows["fastchat"]["pad_share"] > 0
    assert [rows[name]["steps"] for name in ("fastchat", "hf_grouped", "ours_same_steps")] == [3, 3, 3]
    assert rows["ours"]["steps"] < 3
    assert rows[found["baseline"]]["ratio"] == 1
    timed = [line.split(", ")[1].split()[0] for line in lines if "round" in line]
    names = list(rows)
    assert timed == [*names, *names[1:], names[0]]


def _on_fewer_samples(run: Run) -> Trainer:
    fewer = Samples(run.samples.rows[:-1], has_sources=run.samples.has_sources)
    return VARIANTS["yuan2"][1].trainer(replace(run, samples=fewer))


def _with_a_larger_loss(run: Run) -> Trainer:
    trainer: Any = VARIANTS["yuan2"][1].trainer(run)
    compute = trainer.compute_loss
    trainer.compute_loss = lambda *given: 1.001 * compute(*given)
    return trainer  # type: ignore[no-any-return]  # what it was before


@pytest.mark.parametrize("trainer", [_on_fewer_samples, _with_a_larger_loss])
def test_no_time_is_taken_when_gradients_disagree(trainer: Callable[[Run], Trainer]) -> None:
    lines: list[str] = []
    broken = [VARIANTS["yuan2"][0], Variant("broken", "", trainer)]
    with pytest.raises(UnequalError, match="tiny: gradients of broken must agree to 1e-05, but differ by"):
        compare(WORKLOADS["yuan2"], broken, execute=here, seed=1, rounds=1, tell=lines.append)
    assert len(lines) == 1
    assert "round" not in lines[0]


def test_gradients_that_are_not_numbers_disagree() -> None:
    with pytest.raises(UnequalError):
        refuse_unequal({"a": float("nan")}, workload="w")


def test_ratios_are_those_of_the_same_round() -> None:
    own, others = ([Timed(seconds, 0, 0, 0, 1, 1) for seconds in row] for row in ([1, 2, 4], [4, 4, 4]))
    assert ratio_of(own, others) == [2, 1, 4]


def test_useful_operations_of_an_epoch_are_those_of_its_tokens_without_padding() -> None:
    shape = {"vocab_size": 7, "hidden_size": 4, "intermediate_size": 5, "num_hidden_layers": 3}
    found = useful_flops(replace(WORKLOADS["yuan2"], shape=shape), samples([(2, 1), (3, 2)], has_sources=False))
    layer = 5 * (4 * 16 + 2 * 16 + 3 * 20) + (3 + 6) * 2 * 4
    assert found == 3 * 2 * (3 * layer + 3 * 4 * 7)
    rows = samples([(2, 1), (3, 2)], has_sources=False).rows
    shared = useful_flops(replace(WORKLOADS["yuan2"], shape=shape), Samples(rows, has_sources=False, shared=[0, 1]))
    # One token, which sees itself alone, is computed once less.
    assert found - shared == 3 * 2 * 3 * (4 * 16 + 2 * 16 + 3 * 20 + 2 * 4)


def test_useful_operations_of_an_encoder_decoder_have_source_and_target() -> None:
    shape = {"vocab_size": 7, "d_model": 4, "d_kv": 3, "num_heads": 2, "d_ff": 5, "num_layers": 3}
    found = useful_flops(replace(WORKLOADS["flan_t5"], shape=shape), samples([(4, 2)], has_sources=True))
    encoder = 4 * (4 * 4 * 6 + 2 * 4 * 5) + 16 * 2 * 6
    decoder = 2 * (4 * 4 * 6 + 2 * 4 * 5) + 3 * 2 * 6
    cross = (2 + 4) * 2 * 4 * 6 + 2 * 4 * 2 * 6
    assert found == 3 * 2 * (3 * (encoder + decoder + cross) + 2 * 4 * 7)


@pytest.mark.parametrize("workload", [one for suite in SUITES.values() for one in suite], ids=lambda one: one.name)
def test_samples_are_as_full_as_the_workload_says_and_the_same_for_a_seed(workload: Workload) -> None:
    first, again, other = (samples_of(workload, seed=seed) for seed in (3, 3, 4))
    assert first.digest() == again.digest() != other.digest()
    filled = first.num_tokens()[0 if first.has_sources else 1]
    assert filled.max() <= workload.max_length
    assert workload.turns or filled.mean() == pytest.approx(workload.fill * workload.max_length, rel=0.02)
    assert (first.num_supervised() > 0).all()


def test_answers_of_a_conversation_share_what_was_said_before() -> None:
    found = samples_of(SPLIT, seed=1)
    pairs = zip(found.rows, found.rows[1:], found.shared()[1:], strict=False)
    assert [
        num_shared(first["input_ids"].tolist(), second["input_ids"].tolist()) for first, second, _ in pairs
    ] == list(found.shared()[1:])
    assert (found.shared() == 0).sum() == SPLIT.num_samples
    assert found.num_distinct() == sum(len(row["input_ids"]) for row in found.rows) - found.shared().sum()


def test_trees_are_measured_beside_the_samples_apart() -> None:
    found = compare(SPLIT, variants_of(SPLIT)[1:], execute=here, seed=1, rounds=1, tell=lambda _line: None)
    flat, shared = found["rows"]
    assert (flat["variant"], shared["variant"], found["baseline"]) == ("flat_split", "ours", "flat_split")
    assert flat["grad_err"] == 0 < shared["grad_err"] < 1e-5
    assert shared["pad_share"] == 0 < flat["pad_share"]


def test_padding_fills_up_to_the_width() -> None:
    rows = [{"input_ids": [5, 6], "labels": [-100, 6]}, {"input_ids": [7], "labels": [7]}]
    found = {name: ids.tolist() for name, ids in padded(rows, width=3).items()}
    assert found == {
        "input_ids": [[5, 6, 0], [7, 0, 0]],
        "attention_mask": [[1, 1, 0], [1, 0, 0]],
        "labels": [[-100, 6, -100], [7, -100, -100]],
    }


def test_each_measurement_has_a_process_of_its_own() -> None:
    with fresh_processes(preload=()) as execute:
        numbers = [execute(os.getpid) for _ in range(2)]
    assert len({*numbers, os.getpid()}) == 3


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_the_tables_of_the_pages_are_those_of_the_results(page: Path) -> None:
    results, text = committed(), page.read_text(encoding="utf-8")
    assert with_tables(text, results) == text
    assert with_plan(text, json.loads(PLANNED.read_text(encoding="utf-8"))) == text
    assert goals(results) in text
    assert [tables(one) in text for one in results] == [page.parent.name == "benchmarks"] * len(results)


def test_figures_in_a_page_that_were_not_measured_are_replaced() -> None:
    results = committed()
    page = "before <!-- goals: begin -->\n99\n<!-- goals: end --> behind"
    assert with_tables(page, results) == f"before <!-- goals: begin -->\n{goals(results)}\n<!-- goals: end --> behind"


@pytest.mark.parametrize(("most", "shown"), [(1.0, ["| **0.50** |", "| 2.20 |"]), (0.1, ["| 0.50 |", "| 2.20 |"])])
def test_a_goal_is_in_bold_where_it_is_reached(most: float, shown: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.tables.GOALS", [Goal("g", "w", lambda row: row["x"], most, is_most=True)])
    rows = [{"variant": "ours_same_steps", "x": 0.5}, {"variant": "ours", "x": 2.2}]
    line = goals([{"workloads": {"w": {"rows": rows}}}]).splitlines()[-1]
    assert all(part in line for part in shown)


def test_committed_results_were_measured_on_equal_gradients_in_enough_rounds() -> None:
    results = committed()
    assert all({"peak", "workloads", "host", "versions", "date", "load"} <= set(one) for one in results)
    workloads = {name: workload for one in results for name, workload in one["workloads"].items()}
    assert set(workloads) == {one.name for one in SUITES["cpu"]}
    for name, workload in workloads.items():
        for row in workload["rows"]:
            refuse_unequal({row["variant"]: row["grad_err"]}, workload=name)
            assert len(row["seconds"]) >= 5
            assert row["ratio_lo"] <= row["ratio"] <= row["ratio_hi"]


@pytest.mark.parametrize("code", [0, 3])
def test_the_verb_runs_the_benchmark_beside_the_package_and_ends_with_its_code(code: int, tmp_path: Path) -> None:
    folder = tmp_path / "benchmarks"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "run.py").write_text(f"import sys\nsys.exit({code} if sys.argv[1:] == ['--suite', 'cpu'] else 9)\n")
    assert bench(["--suite", "cpu"], root=tmp_path) == code


def test_without_the_repository_the_verb_says_where_the_benchmark_is(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="the package comes without the benchmark; run it in a clone"):
        bench([], root=tmp_path)


def test_the_verb_takes_the_flags_of_the_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []

    def benched(given: Sequence[str]) -> int:
        seen.append(list(given))
        return 7

    monkeypatch.setattr("ds_sft.tools.bench.bench", benched)
    words = ["--suite", "cpu", "--json", "f.json", "--help"]
    assert CliRunner().invoke(app, ["bench", *words]).exit_code == 7
    assert seen == [words]


def test_the_suite_for_gpus_is_refused_without_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match="--suite: gpu needs a GPU, but torch sees none"):
        run_benchmark(["--suite", "gpu"])


def test_the_plan_is_within_a_tenth_of_what_was_measured() -> None:
    rows = json.loads(PLANNED.read_text(encoding="utf-8"))["rows"]
    assert {(row["family"], row["stage"], row["ranks"], row["is_checkpointing"]) for row in rows} == set(
        product(("yuan2", "flan_t5"), (2, 3), (1, 2), (False, True))
    )
    assert all(abs(row["planned_mib"] / row["measured_mib"] - 1) <= 0.1 for row in rows)
