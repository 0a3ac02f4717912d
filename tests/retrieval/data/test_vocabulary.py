"""Words are cut as nltk cuts them, counted, numbered, saved and read again."""

import json

import pytest
from transformers import AutoTokenizer

from gssf_plug.errors import ArgumentError, DataError
from gssf_plug.retrieval.data.vocabulary import scan_tokenizer, word_tokenizer

# what nltk.word_tokenize gives, put down by hand from its documented rules
CUT = {
    "A man's dog doesn't run.": ["a", "man", "'s", "dog", "does", "n't", "run", "."],
    "Two T-shirts, they're red!": ["two", "t-shirts", ",", "they", "'re", "red", "!"],
    "can't won't I'm we've": ["ca", "n't", "wo", "n't", "i", "'m", "we", "'ve"],
    "1,000 people (or 3.5 %)": ["1,000", "people", "(", "or", "3.5", "%", ")"],
    "Müller  läuft\tschnell": ["müller", "läuft", "schnell"],
}


@pytest.mark.parametrize("text", CUT)
def test_text_is_cut_into_words(text):
    tokenizer = word_tokenizer([text], least=1)
    assert tokenizer.tokenize(text) == CUT[text]
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["<start>", *CUT[text], "<end>"]


def test_rare_words_are_unknown_and_numbers_are_fixed():
    tokenizer = word_tokenizer(["red red red red blue blue blue", "red green"])
    assert tokenizer.get_vocab() == {"<pad>": 0, "<start>": 1, "<end>": 2, "<unk>": 3, "red": 4, "<mask>": 5}
    assert len(tokenizer) == 6
    batch = tokenizer(["red blue", "red"], padding=True, return_tensors="pt")
    assert batch["input_ids"].tolist() == [[1, 4, 3, 2], [1, 4, 2, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    assert (tokenizer.mask_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id) == (5, 0, 3)


def test_saved_and_read_again(tmp_path):
    tokenizer = word_tokenizer(list(CUT), least=1)
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    for text in CUT:
        assert again(text)["input_ids"] == tokenizer(text)["input_ids"]


def scan_file(folder, words):
    path = folder / "f30k_precomp_vocab.json"
    path.write_text(
        json.dumps({"word2idx": words, "idx2word": {str(i): w for w, i in words.items()}, "idx": len(words)})
    )
    return path


def test_the_vocabulary_of_scan(tmp_path):
    words = {"<pad>": 0, "<start>": 1, "<end>": 2, "<unk>": 3, "man": 4, "'s": 5}
    tokenizer = scan_tokenizer(scan_file(tmp_path, words))
    assert tokenizer("Man's best")["input_ids"] == [1, 4, 5, 3, 2]
    assert len(tokenizer) == 7
    assert tokenizer.mask_token_id == 6


def test_another_file_than_scans(tmp_path):
    with pytest.raises(
        DataError, match=r"vocab\.json' does not number its words from 0, beginning with <pad>, <start>"
    ):
        scan_tokenizer(scan_file(tmp_path, {"man": 0}))
    (tmp_path / "f30k_precomp_vocab.json").write_text("{}")
    with pytest.raises(DataError, match="is no vocabulary of SCAN \\(KeyError: 'word2idx'\\)"):
        scan_tokenizer(tmp_path / "f30k_precomp_vocab.json")
    with pytest.raises(DataError, match=r"gone\.json' is no vocabulary of SCAN \(FileNotFoundError"):
        scan_tokenizer(tmp_path / "gone.json")


def test_too_few_words():
    with pytest.raises(ArgumentError, match="`captions` must hold a word at least 4 times"):
        word_tokenizer(["one two three"])
    with pytest.raises(ArgumentError, match="`least` must be at least 1, but got 0"):
        word_tokenizer(["one"], least=0)
