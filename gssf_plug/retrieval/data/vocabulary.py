"""Word vocabularies of the image–text literature as ordinary tokenizers of transformers.

    ids: <pad> 0, <start> 1, <end> 2, <unk> 3, then words; <mask> last        "<start> a man runs <end>"

Text is put in small letters and cut as the Penn Treebank is (nltk.word_tokenize, which public code uses): `doesn't`
becomes `does n't`, `man's` becomes `man 's`, punctuation stands alone, words with hyphens stay whole. Build a
vocabulary from training captions alone: VSE++ counted the words of all sets, the test set among them.
"""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from gssf_plug.errors import ArgumentError, DataError
from gssf_plug.retrieval.data.source_files import StrPath

__all__ = ["scan_tokenizer", "word_tokenizer"]

SPECIAL = ("<pad>", "<start>", "<end>", "<unk>")
MASK = "<mask>"
WORD = r"\w+?(?=n't\b)|n't\b|'(?:s|re|ve|ll|m|d)\b|\w+(?:[-.,/&]\w+)*|[^\w\s]"


def word_tokenizer(captions: Iterable[str], *, least: int = 4) -> PreTrainedTokenizerFast:
    """A tokenizer of the words that occur often enough.

    Args:
        captions: texts of the training set.
        least: number of times that a word must occur; default 4, as in VSE++. Other words become <unk>.

    Raises:
        ArgumentError: `least` is below 1, or no word occurs that often.

    Example:
        >>> tokenizer = word_tokenizer(["A man runs.", "The man doesn't run."], least=1)
        >>> tokenizer.decode(tokenizer("a man doesn't swim")["input_ids"])
        "<start> a man does n't <unk> <end>"
    """
    if least < 1:
        raise ArgumentError("least", "be at least 1", least, "The field uses 4.")
    cut = _tokenizer({"<unk>": 0})
    counts = Counter(
        word for text in captions for word, _ in cut.pre_tokenizer.pre_tokenize_str(cut.normalizer.normalize_str(text))
    )
    words = sorted(word for word, count in counts.items() if count >= least)
    if not words:
        raise ArgumentError("captions", f"hold a word at least {least} times", "none", "Give more texts, or lower it.")
    return _fast({word: number for number, word in enumerate([*SPECIAL, *words, MASK])})


def scan_tokenizer(path: StrPath) -> PreTrainedTokenizerFast:
    """A tokenizer with the vocabulary of SCAN's `f30k_precomp_vocab.json` or `coco_precomp_vocab.json`.

    Args:
        path: JSON file with "word2idx", from a word to its number, <pad> 0 … <unk> 3.

    Raises:
        DataError: there is no such file, or it holds something else.
    """
    try:
        numbers = json.loads(Path(path).expanduser().read_text(encoding="utf-8-sig"))["word2idx"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = f"is no vocabulary of SCAN ({type(error).__name__}: {error})"
        raise DataError(
            path, problem, "Take the JSON file of SCAN's repository, or build one from captions."
        ) from error
    if sorted(numbers.values()) != list(range(len(numbers))) or [numbers.get(word) for word in SPECIAL] != [0, 1, 2, 3]:
        problem = f"does not number its words from 0, beginning with {', '.join(SPECIAL)}"
        raise DataError(path, problem, "Take the JSON file of SCAN's repository, or build one from captions.")
    return _fast({**numbers, MASK: numbers.get(MASK, len(numbers))})


def _tokenizer(numbers: dict[str, int]) -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel(numbers, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(WORD), behavior="removed", invert=True)
    return tokenizer


def _fast(numbers: dict[str, int]) -> PreTrainedTokenizerFast:
    tokenizer = _tokenizer(numbers)
    ends = [(word, numbers[word]) for word in ("<start>", "<end>")]
    tokenizer.post_processor = processors.TemplateProcessing(single="<start> $A <end>", special_tokens=ends)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<start>",
        eos_token="<end>",
        unk_token="<unk>",
        mask_token=MASK,
        padding_side="right",
    )
