"""Scores of answers are those that can be worked out by hand, in English and in Chinese."""

import importlib.util
from typing import Any

import pytest
from rouge_score.rouge_scorer import RougeScorer

from ds_sft.training.text_scores import missing_scores, text_scores


@pytest.mark.parametrize(
    ("expected", "prediction"),
    [
        ("The cat sat on the mat.", "the cat on the mat"),
        ("\u5929\u7a7a\u662f\u84dd\u8272\u7684", "\u5929\u7a7a\u662f\u84dd\u7684"),
    ],
)
def test_rouge_of_an_answer_that_leaves_one_word_out(expected: str, prediction: str) -> None:
    found = text_scores([prediction], [expected])
    # 5 of 5 words of the answer are among the 6 expected, in order: F = 2 * 1 * 5/6 / (1 + 5/6) = 10/11.
    assert found["rouge1"] == pytest.approx(100 * 10 / 11)
    assert found["rougeL"] == pytest.approx(100 * 10 / 11)
    # 3 of 4 pairs, of 5 expected: F = 2 * 3/4 * 3/5 / (3/4 + 3/5) = 2/3.
    assert found["rouge2"] == pytest.approx(100 * 2 / 3)


@pytest.mark.parametrize(
    ("expected", "prediction"),
    [
        ("the cat sat on the mat", "the cat sat on the dog"),
        ("\u5929\u7a7a\u662f\u84dd\u8272\u7684", "\u5929\u7a7a\u662f\u84dd\u8272\u5417"),
    ],
)
def test_bleu_of_an_answer_whose_last_word_is_wrong(expected: str, prediction: str) -> None:
    # 5/6, 4/5, 3/4 and 2/3 of its runs of 1 to 4 words are right, and it is as long: the fourth root of their product.
    assert text_scores([prediction], [expected])["bleu"] == pytest.approx(100 * (1 / 3) ** 0.25)


def test_chrf_of_a_short_answer() -> None:
    # Runs of one: 2 of 2 right, 2 of 3 found; of two: 1 of 1 right, 1 of 2 found. P = 1, R = 7/12, beta = 2.
    assert text_scores(["ab"], ["abc"])["chrf"] == pytest.approx(100 * 5 * (7 / 12) / (4 + 7 / 12))


def test_rouge_is_a_mean_over_answers_and_equal_answers_score_all() -> None:
    found = text_scores(["one two three four", "nothing of it"], ["one two three four", "five six seven"])
    assert found["rouge1"] == found["rougeL"] == pytest.approx(50)
    whole = text_scores(["one two three four"], ["one two three four"])
    assert whole == pytest.approx(dict.fromkeys(whole, 100.0))


def test_an_empty_answer_scores_nothing() -> None:
    found = text_scores([""], ["one two three four"])
    assert found == dict.fromkeys(found, 0.0)


def test_ascii_text_scores_as_with_the_packages_own_tokenizer() -> None:
    true, told = "Run `ds-sft plan --fit 24GB`, it's A_B 3.5!", "run ds sft plan: it s a b 3 (24gb)"
    own = RougeScorer(["rouge1", "rouge2", "rougeL"]).score(true, told)
    found = text_scores([told], [true])
    assert {name: found[name] for name in own} == pytest.approx({name: 100 * own[name].fmeasure for name in own})


def test_other_scripts_are_words(monkeypatch: pytest.MonkeyPatch) -> None:
    assert text_scores(["\u043c\u0438\u0440 caf\u00e9"], ["\u041c\u0438\u0440, caf\u00e9!"])["rouge2"] == pytest.approx(
        100
    )


def test_packages_that_are_missing_are_one_fault_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(missing_scores()) == []
    real: Any = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "sacrebleu" else real(name))
    (fault,) = missing_scores()
    assert str(fault) == ("predict_with_generate: needs sacrebleu, but it is not installed; pip install -e '.[eval]'")
