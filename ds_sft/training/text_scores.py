"""ROUGE, BLEU and chrF of answers, in percent; Chinese and Japanese are compared character by character.

The packages are an extra, so they are imported where they are needed.
"""

import importlib.util
import re
from collections.abc import Iterator, Sequence

from ds_sft.errors import ConfigError

_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_HAS_CJK = re.compile(f"[{_CJK}]")
_TOKEN = re.compile(f"[{_CJK}]|(?:(?![{_CJK}])[^\\W_])+")
_ROUGE = ("rouge1", "rouge2", "rougeL")
_PERCENT = 100.0


class _Tokenizer:
    """Cuts text as ROUGE does, into runs of letters and digits, but of every script.

    rouge-score's own tokenizer knows a to z and 0 to 9 alone: any Chinese answer would score 0. For ASCII text both
    give the same.
    """

    def tokenize(self, text: str) -> list[str]:
        """Cut a text.

        Args:
            text: Any.

        Returns:
            Its tokens in small letters.
        """
        return _TOKEN.findall(text.lower())


def missing_scores() -> Iterator[ConfigError]:
    """Look for the packages without loading them.

    Yields:
        One error where any is not installed.
    """
    missing = [name for name in ("rouge_score", "sacrebleu") if importlib.util.find_spec(name) is None]
    if missing:
        yield ConfigError(
            f"predict_with_generate: needs {' and '.join(missing)}, but it is not installed; pip install -e '.[eval]'"
        )


def text_scores(predictions: Sequence[str], expected: Sequence[str]) -> dict[str, float]:
    """Compare answers with those of the data.

    Args:
        predictions: Of the model.
        expected: Of the data, one for each, at least one.

    Returns:
        `rouge1`, `rouge2` and `rougeL` (mean F1 over answers), `bleu` and `chrf` (of all answers together), in percent.
    """
    from rouge_score.rouge_scorer import RougeScorer  # noqa: PLC0415  # see above
    from sacrebleu.metrics.bleu import BLEU  # noqa: PLC0415
    from sacrebleu.metrics.chrf import CHRF  # noqa: PLC0415

    scorer = RougeScorer(_ROUGE, tokenizer=_Tokenizer())
    found = [scorer.score(true, told) for told, true in zip(predictions, expected, strict=True)]
    means = {name: _PERCENT * sum(one[name].fmeasure for one in found) / len(found) for name in _ROUGE}
    # sacrebleu's usual tokenizer takes a Chinese sentence for one word.
    tokenize = "zh" if any(map(_HAS_CJK.search, expected)) else "13a"
    bleu = BLEU(tokenize=tokenize).corpus_score(list(predictions), [list(expected)]).score
    chrf = CHRF().corpus_score(list(predictions), [list(expected)]).score
    return {**means, "bleu": float(bleu), "chrf": float(chrf)}
