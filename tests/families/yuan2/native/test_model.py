"""The native model is the official one: every number of the golden file, under every attention."""

from functools import cache
from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers import DynamicCache, StaticCache

from ds_sft.families.yuan2.native.model import Yuan2ForCausalLM
from ds_sft.model.loss import targets_of
from tests.families.yuan2.native.golden import LOGITS, cases, difference, facts, logits, model

ATTENTIONS = ["eager", "sdpa"]
GRADIENT = 1e-4
MASKED = {"pad_token_id": 0, "eos_token_id": None, "do_sample": False}


@cache
def shared(attention: str) -> Any:
    """One model for all tests that change nothing."""
    return model(attention)


@pytest.fixture(params=ATTENTIONS)
def golden(request: pytest.FixtureRequest) -> Any:
    """The golden model under each attention."""
    return shared(request.param)


@pytest.mark.parametrize("use_cache", [False, True])
def test_logits_are_the_official_ones(golden: Any, use_cache: bool) -> None:
    found = logits(golden, cases()["plain/input_ids"], use_cache=use_cache)
    assert difference(found, cases()["plain/logits_eval"]) < LOGITS


def test_logits_in_training_are_the_official_ones() -> None:
    training = model("sdpa").train()
    assert difference(logits(training, cases()["plain/input_ids"]), cases()["plain/logits_train"]) < LOGITS
    noreset = logits(training, cases()["eod_noreset_train/input_ids"])
    assert difference(noreset, cases()["eod_noreset_train/logits"]) < LOGITS


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize(
    ("part", "name"),
    [("self_attn.lf_gate", "lf_gate_out"), ("self_attn", "attn_out"), ("mlp", "mlp_out"), ("", "out")],
)
def test_every_part_of_every_layer_gives_the_official_states(layer: int, part: str, name: str) -> None:
    golden = shared("eager")
    seen: list[Any] = []
    module = golden.get_submodule(".".join(filter(None, [f"model.layers.{layer}", part])))
    hook = module.register_forward_hook(lambda _module, _given, given_back: seen.append(given_back))
    logits(golden, cases()["plain/input_ids"])
    hook.remove()
    (states,) = seen
    states = states[0] if isinstance(states, tuple) else states
    torch.testing.assert_close(states, cases()[f"plain/layer{layer}_{name}"], rtol=1e-4, atol=LOGITS)


def test_attention_probabilities_and_final_states_are_the_official_ones() -> None:
    with torch.no_grad():
        found = shared("eager")(cases()["plain/input_ids"], output_attentions=True, output_hidden_states=True)
    assert difference(found.attentions[0], cases()["plain/layer0_attn_weights"]) < 1e-5
    assert difference(found.hidden_states[-1], cases()["plain/final_normed"]) < LOGITS
    assert len(found.hidden_states) == 4


def test_the_filters_norm_ignores_the_epsilon_of_the_config() -> None:
    found = logits(model("sdpa", rms_norm_eps=0.05), cases()["eps_probe/input_ids"])
    assert difference(found, cases()["eps_probe/logits_eval"]) < LOGITS
    assert facts()["eps_probe"]["diff_to_plain"] > 1


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_loss_and_every_gradient_are_the_official_ones(attention: str, checkpointing: bool) -> None:
    trained = model(attention).train()
    if checkpointing:
        trained.activation_checkpointing_enable()
    loss = trained(cases()["loss/input_ids"], labels=cases()["loss/labels"]).loss
    loss.backward()
    assert loss.item() == pytest.approx(facts()["loss"]["loss_shifted"], abs=1e-5)
    expected = _gradients("loss/grad_shifted/")
    found = dict(trained.named_parameters())
    assert set(expected) == set(found)
    assert {
        name: _off(found[name], grad) for name, grad in expected.items() if _off(found[name], grad) > GRADIENT
    } == {}


def test_the_loss_on_labels_that_were_shifted_before_has_the_official_gradients() -> None:
    trained = model("sdpa").train()
    scores = trained(cases()["loss/input_ids"]).logits
    loss = functional.cross_entropy(scores.flatten(0, 1), cases()["loss/labels"].flatten())
    loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    assert loss.item() == pytest.approx(facts()["loss"]["loss_unshifted"], abs=1e-5)
    expected, found = _gradients("loss/grad_unshifted/"), dict(trained.named_parameters())
    assert len(expected) == 3
    assert all(_off(found[name], grad) < GRADIENT for name, grad in expected.items())


def _gradients(prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in cases().items() if name.startswith(prefix)}


def _off(parameter: torch.Tensor, expected: torch.Tensor) -> float:
    """Give the largest difference of a gradient as a share of its largest entry."""
    assert parameter.grad is not None
    return difference(parameter.grad, expected) / float(expected.abs().max())


@pytest.mark.parametrize("case", ["greedy", "greedy_prompt1", "greedy_prompt2"])
@pytest.mark.parametrize("cache", [None, "static"])
def test_greedy_generation_gives_the_official_ids_and_logits(golden: Any, case: str, cache: str | None) -> None:
    prompt, expected = cases()[f"{case}/prompt_ids"], cases()[f"{case}/new_ids"]
    written = golden.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=expected.shape[1],
        cache_implementation=cache,
        return_dict_in_generate=True,
        output_logits=True,
        **MASKED,
    )
    assert torch.equal(written.sequences[:, prompt.shape[1] :], expected)
    assert difference(torch.stack(written.logits, dim=1), cases()[f"{case}/step_logits"]) < LOGITS


@pytest.mark.parametrize("case", ["greedy", "greedy_prompt1", "greedy_prompt2"])
def test_keys_and_values_in_the_cache_are_the_official_ones(golden: Any, case: str) -> None:
    with torch.no_grad():
        cache = golden(cases()[f"{case}/prompt_ids"], use_cache=True).past_key_values
    for layer in (0, 2):
        assert difference(cache.layers[layer].keys, cases()[f"{case}/cache_after_prompt/layer{layer}_key"]) < LOGITS
        assert difference(cache.layers[layer].values, cases()[f"{case}/cache_after_prompt/layer{layer}_value"]) < LOGITS
        # The official cache keeps the last two normed states; ours the last one and what the first filter made of it.
        last = cases()[f"{case}/cache_after_prompt/layer{layer}_lf_memory"][:, -1]
        assert difference(cache.layers[layer].conv_states[0][..., -1], last) < LOGITS


@pytest.mark.parametrize("chunks", [[9, *[1] * 28], [1, 1, 1, 34], [10, 15, 12], [37], [36, 1]], ids=str)
@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_a_prompt_in_chunks_gives_the_logits_of_the_whole(golden: Any, chunks: list[int], kind: str) -> None:
    ids = cases()["forced_cached/input_ids"]
    cache: Any = (
        DynamicCache(config=golden.config) if kind == "dynamic" else StaticCache(golden.config, max_cache_len=40)
    )
    found = [logits(golden, chunk, past_key_values=cache, use_cache=True) for chunk in torch.split(ids, chunks, dim=1)]
    assert difference(torch.cat(found, dim=1), cases()["forced_cached/logits"]) < LOGITS


def test_tokens_before_padding_on_the_right_have_the_official_logits(golden: Any) -> None:
    mask = cases()["rightpad/attention_mask"]
    found = logits(golden, cases()["rightpad/input_ids"], attention_mask=mask)
    assert difference(found[mask.bool()], cases()["rightpad/logits_eval"][mask.bool()]) < LOGITS


@pytest.mark.parametrize("with_positions", [False, True])
def test_padding_on_the_left_leaks_into_nothing(golden: Any, with_positions: bool) -> None:
    mask = cases()["leftpad/attention_mask"]
    positions = cases()["leftpad/position_ids"] if with_positions else None
    found = logits(golden, cases()["leftpad/input_ids"], attention_mask=mask, position_ids=positions)
    assert difference(found[1][mask[1].bool()], cases()["leftpad/logits_row1_unpadded_truth"][0]) < LOGITS
    assert difference(found[0], cases()["leftpad/logits_eval_official_leaky"][0]) < LOGITS, "this row has no padding"


@pytest.mark.parametrize("cache", [None, "static"])
def test_a_padded_prompt_is_continued_like_the_prompt_alone(golden: Any, cache: str | None) -> None:
    prompt = cases()["leftpad_greedy/prompt_ids"]
    written = golden.generate(
        prompt,
        attention_mask=cases()["leftpad_greedy/attention_mask"],
        max_new_tokens=10,
        cache_implementation=cache,
        return_dict_in_generate=True,
        output_logits=True,
        **MASKED,
    )
    truth = cases()["leftpad_greedy/new_ids_row1_unpadded_truth"][0]
    assert torch.equal(written.sequences[1, prompt.shape[1] :], truth)
    steps = torch.stack(written.logits, dim=1)[1]
    assert difference(steps, cases()["leftpad_greedy/step_logits_row1_unpadded_truth"][0]) < LOGITS


@pytest.mark.parametrize("cut", [3, 6, 7, 8])
def test_a_padded_prompt_may_be_cut_into_chunks_inside_its_padding(golden: Any, cut: int) -> None:
    ids, mask = cases()["leftpad/input_ids"], cases()["leftpad/attention_mask"]
    cache = DynamicCache(config=golden.config)
    logits(golden, ids[:, :cut], attention_mask=mask[:, :cut], past_key_values=cache, use_cache=True)
    rest = logits(golden, ids[:, cut:], attention_mask=mask, past_key_values=cache, use_cache=True)
    padding = int((mask[1] == 0).sum())
    truth = cases()["leftpad/logits_row1_unpadded_truth"][0]
    skipped = max(padding - cut, 0)
    assert difference(rest[1, skipped:], truth[max(cut - padding, 0) :]) < LOGITS


def test_packed_documents_equal_each_document_alone(golden: Any) -> None:
    found = logits(golden, cases()["packed_clean/input_ids"], document_ids=cases()["packed_clean/document_id"])
    assert difference(found, cases()["packed_clean/logits_per_document"]) < 2.5e-5
    with torch.no_grad():
        loss = golden(
            cases()["packed_clean/input_ids"],
            labels=cases()["packed_clean/labels"],
            document_ids=cases()["packed_clean/document_id"],
        ).loss
    assert loss.item() == pytest.approx(facts()["packed_clean"]["loss_shifted_all_positions"], abs=1e-5)


def test_packed_rows_differ_from_the_official_ones_only_where_those_leak(golden: Any) -> None:
    ids = cases()["eod_reset_train/input_ids"]
    ends = (ids == golden.config.eos_token_id).long()
    found = logits(golden, ids, document_ids=ends.cumsum(dim=1) - ends)
    off = (found - cases()["eod_reset_train/logits"]).abs().amax(dim=-1)
    for row, positions in enumerate(facts()["eod_reset_train"]["eod_positions"]):
        first = positions[0]
        # The first token of a document sees only itself, so what leaks into its query changes nothing.
        assert float(off[row, : first + 2].max()) < LOGITS
        assert float(off[row, first + 2]) > 1


def test_casting_to_bf16_leaves_the_angles_exact() -> None:
    cast = model("sdpa").bfloat16()
    found = logits(cast, cases()["plain/input_ids"])
    to_fp32 = difference(found.float(), cases()["bf16/logits_inv_freq_fp32"].float())
    to_bf16 = difference(found.float(), cases()["bf16/logits_inv_freq_bf16"].float())
    assert to_fp32 < to_bf16
    assert to_fp32 < facts()["bf16"]["maxdiff_fp32inv_vs_fp32model"]


@pytest.mark.parametrize(
    "settings",
    [{"do_sample": True, "top_k": 5}, {"num_beams": 3, "do_sample": False}, {"num_beams": 2, "do_sample": True}],
    ids=["sampling", "beams", "sampled beams"],
)
def test_generation_with_a_cache_gives_the_ids_of_generation_without(settings: dict[str, Any]) -> None:
    golden, prompt = shared("sdpa"), cases()["leftpad_greedy/prompt_ids"]
    written = []
    for use_cache in (True, False):
        torch.manual_seed(3)
        written.append(
            golden.generate(
                prompt,
                attention_mask=cases()["leftpad_greedy/attention_mask"],
                max_new_tokens=8,
                use_cache=use_cache,
                pad_token_id=0,
                eos_token_id=None,
                **settings,
            )
        )
    assert torch.equal(*written)
    assert written[0].shape == (2, prompt.shape[1] + 8)


def test_speculative_decoding_gives_the_greedy_ids() -> None:
    # The cache must be able to go back: rejected tokens leave filter states too.
    golden, prompt, expected = shared("sdpa"), cases()["greedy/prompt_ids"][:1], cases()["greedy/new_ids"][:1]
    written = golden.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=expected.shape[1],
        prompt_lookup_num_tokens=3,
        **MASKED,
    )
    assert torch.equal(written[:, prompt.shape[1] :], expected)


def test_embeddings_instead_of_ids_and_few_logits_give_the_same_numbers() -> None:
    golden, ids = shared("sdpa"), cases()["plain/input_ids"]
    with torch.no_grad():
        embedded = golden.get_input_embeddings()(ids)
        found = golden(inputs_embeds=embedded, logits_to_keep=2).logits
        picked = golden(ids, logits_to_keep=torch.tensor([0, 5])).logits
    assert difference(found, cases()["plain/logits_eval"][:, -2:]) < LOGITS
    assert difference(picked, cases()["plain/logits_eval"][:, [0, 5]]) < LOGITS


@pytest.mark.parametrize("given", [{}, {"input_ids": 1, "inputs_embeds": 1}])
def test_ids_and_embeddings_must_be_given_one_at_a_time(given: dict[str, int]) -> None:
    ids = cases()["plain/input_ids"]
    known = {"input_ids": ids, "inputs_embeds": shared("sdpa").get_input_embeddings()(ids)}
    with pytest.raises(ValueError, match="exactly one must be given"):
        shared("sdpa")(**{name: known[name] for name in given})


def test_a_new_model_has_the_official_first_weights() -> None:
    torch.manual_seed(0)
    new = Yuan2ForCausalLM(model("sdpa").config)
    layer = new.model.layers[0]
    convolution = layer.self_attn.lf_gate.conv1
    weight, up = convolution.weight.detach(), layer.mlp.up_proj.weight.detach()
    bound = (2 * 64) ** -0.5  # torch's own for Conv2d: 1 / sqrt(inputs of one output)
    assert float(weight.abs().max()) <= bound
    assert float(weight.std()) == pytest.approx(bound / 3**0.5, rel=0.05)
    assert float(up.std()) == pytest.approx(0.02, rel=0.05)
    assert torch.equal(layer.self_attn.lf_gate.output_layernorm.weight, torch.ones(64))
    assert not new.model.embed_tokens.weight[5].any()


def test_losses_and_gradients_at_targets_are_those_of_the_logits() -> None:
    golden = model("sdpa")
    ids, labels = cases()["plain/input_ids"], cases()["plain/input_ids"].roll(-1, dims=1)
    labels[:, [0, 5, -1]] = -100
    whole = functional.cross_entropy(golden(ids).logits.flatten(0, 1), labels.flatten(), reduction="sum")
    losses = golden(ids, targets=targets_of(labels))
    assert losses.target_losses.shape == (2 * 34,)
    assert losses.loss.item() == pytest.approx(whole.item(), rel=1e-6)
    weights = dict(golden.named_parameters())
    assert "lm_head.weight" not in weights, "the head is tied, so its gradient is that of both its uses"
    found, wanted = (torch.autograd.grad(loss, list(weights.values())) for loss in (losses.loss, whole))
    for name, one, other in zip(weights, found, wanted, strict=True):
        assert difference(one, other) < 1e-5 * float(other.abs().max()), name
