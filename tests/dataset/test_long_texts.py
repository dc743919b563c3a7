"""Long texts are encoded in pieces, and have the ids that they have as a whole."""

import itertools
from types import SimpleNamespace

import numpy as np
from conftest import DATA
from hypothesis import given, settings
from hypothesis import strategies as st

from train.data import long_texts, sources
from train.data.rows import rows_of
from train.data.tokenize import Reading, TokenizeConfig

TEXT = (DATA / "shakespeare" / "train.txt").read_text(encoding="utf-8")
# Whatever the patterns of tokenizers treat in their own way around a line's end.
ENDS = ["\n", "\n\n", "\r\n", " ", "  ", "\t", "\u00a0", "\u2028"]
WORDS = [
    "To be",
    ",",
    " or",
    "12345",
    "don't",
    "é",
    "e\u0301",
    "\u0301",
    "好",
    "…",
    "<|im_start|>",
    "<|endoftext|>",
    "}",
]
LINES = st.lists(st.sampled_from(ENDS + WORDS), max_size=120).map("".join)


@settings(deadline=None, max_examples=300)
@given(text=LINES, piece=st.integers(1, 40))
def test_pieces_have_the_ids_of_the_whole(tokenizer, text, piece):
    (found,) = long_texts.encode(tokenizer, [text], piece)
    assert list(found) == tokenizer(text, add_special_tokens=False).input_ids


def test_pieces_begin_with_lines_and_are_of_about_the_length_that_is_asked_for(tokenizer):
    cuts = long_texts.cuts_of(tokenizer, TEXT, 5000)
    assert cuts[0] == 0
    assert cuts[-1] == len(TEXT)
    assert max(np.diff(cuts)) < 2 * 5000
    assert len(cuts) > len(TEXT) / 6000
    assert all(TEXT[cut - 1] == "\n" and not TEXT[cut].isspace() for cut in cuts[1:-1])


def test_short_and_long_texts_keep_their_order(tokenizer):
    texts = [TEXT[:2000], "a", TEXT[2000:5000], "", "b c"]
    found = long_texts.encode(tokenizer, texts, 700)
    assert [list(ids) for ids in found] == tokenizer(texts, add_special_tokens=False).input_ids
    assert long_texts.encode(tokenizer, []) == []


def test_a_tokenizer_to_which_a_beginning_matters_gets_the_whole():
    def spaced(texts, **_):
        return SimpleNamespace(input_ids=[[ord(letter) for letter in f" {text}"] for text in texts])

    assert long_texts.cuts_of(spaced, "ab\n" * 100, 10) == [0, 300]
    (found,) = long_texts.encode(spaced, ["ab\n" * 100], 10)
    assert found.tolist() == [ord(letter) for letter in " " + "ab\n" * 100]


def test_a_file_longer_than_a_piece_is_one_document(tmp_path, tokenizer):
    (tmp_path / "long.txt").write_text(TEXT[: 2 * long_texts.PIECE], encoding="utf-8")
    source = sources.load(str(tmp_path / "long.txt"), None, "train")
    rows = rows_of(source, TokenizeConfig("pretrain", 64), tokenizer, Reading(), num_proc=None)
    whole = [*tokenizer(TEXT[: 2 * long_texts.PIECE]).input_ids, tokenizer.eos_token_id]
    assert rows.values[:].tolist() == whole
    assert list(itertools.chain(*(rows.row(i).ids for i in range(len(rows))))) == whole[: len(rows) * 64]
    assert "documents: 1," in rows.report
