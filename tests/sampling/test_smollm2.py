"""A real model, SmolLM2-135M-Instruct: logits, likelihoods, greedy texts and chats are those of transformers.

Its weights come from the package index (examples/smollm2), not with the project.
"""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from conftest import DATA, ROOT
from transformers import AutoModelForCausalLM, AutoTokenizer

import qwen3llada_jax as q
from converters.from_hf import convert
from qwen3llada_jax.text import mask_token
from qwen3llada_jax.text.chat_template import ChatWriter
from qwen3llada_jax.writing.requests import encode_chat

FOLDER = ROOT / "out" / "smollm2" / "hf"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not FOLDER.is_dir(), reason=f"SmolLM2 is not at {FOLDER}: `make smollm2` fetches it"),
]
LENGTH, EOS, MASK = 512, 2, 7
PROMPTS = [
    "The capital of France is", "Water boils at", "Once upon a time, there was a", "def fibonacci(n):\n",
    "The three primary colors are", "In 1969, humans first", "2 + 2 =", "A haiku about autumn:\n",
    "The largest planet of the solar system is", "To be, or not to be,", "Dear Sir or Madam,\n", "Photosynthesis is",
    "The opposite of hot is", "My favorite food is", "List of fruits:\n1. Apple\n2.", "Shakespeare was born in",
    "The Pythagorean theorem says", "import numpy as np\n", "Q: Who wrote Hamlet?\nA:", "The sea was calm, and",
]  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    return q.load_tokenizer(FOLDER)


@pytest.fixture(scope="module")
def reference():
    return AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def model():
    return q.load(FOLDER)


def rows_of_text(tokenizer) -> np.ndarray:
    """[B, L] a play, and a page of these docs."""
    texts = (DATA / "shakespeare" / "valid.txt", ROOT / "docs" / "sampling.md")
    ids = [tokenizer(text.read_text(encoding="utf-8")[:6000]).input_ids[:LENGTH] for text in texts]
    assert {len(row) for row in ids} == {LENGTH}
    return np.array(ids)


def test_logits_and_likelihoods_of_real_text(tokenizer, reference, model):
    tokens = rows_of_text(tokenizer)
    with torch.no_grad():
        expected = reference(torch.tensor(tokens)).logits.numpy()
    found = np.asarray(model(tokens))
    assert np.abs(found - expected).max() <= 2e-5 * np.abs(expected).max()

    def log_p(logits):
        every = np.asarray(jax.nn.log_softmax(logits[:, :-1].astype(np.float64)))
        return np.take_along_axis(every, tokens[:, 1:, None], -1)[..., 0]

    assert np.abs(log_p(found).mean(1) - log_p(expected).mean(1)).max() <= 1e-5
    assert np.abs(log_p(found) - log_p(expected)).max() <= 2e-4
    assert -4.5 < log_p(found).mean() < -1.5  # it is a language model's


def generated(reference, tokenizer, prompts, length):
    """([B, T] what transformers writes greedily, [B, T] how far its first choice was above the second)."""
    padded = tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt")
    with torch.no_grad():
        done = reference.generate(
            **padded, max_new_tokens=length, do_sample=False, return_dict_in_generate=True, output_logits=True
        )
    best = torch.stack(done.logits, 1).topk(2, -1).values
    return done.sequences[:, padded.input_ids.shape[1] :].numpy(), (best[..., 0] - best[..., 1]).numpy()


def assert_same(answers, expected, margins):
    """Token for token, up to the end; they may part only where two tokens are as good as equal."""
    for ours, theirs, margin in zip(answers, expected, margins, strict=True):
        end = int(np.argmax(theirs == EOS)) if EOS in theirs else len(theirs)
        apart = np.flatnonzero(np.asarray(ours[:end]) != theirs[:end])
        assert not apart.size or margin[apart[0]] < 1e-4, (int(apart[0]), float(margin[apart[0]]))


@pytest.fixture(scope="module")
def greedy(tokenizer, reference):
    """(prompts, 64 tokens behind each as transformers writes them greedily, how sure of each)."""
    prompts = [tokenizer(text).input_ids for text in PROMPTS]
    assert len({len(prompt) for prompt in prompts}) > 3
    return prompts, *generated(reference, tokenizer, prompts, 64)


@pytest.mark.soak
def test_greedy_texts_are_those_of_transformers_generate(tokenizer, greedy, model):
    prompts, expected, margins = greedy
    settings = q.settings_for(model, gen_length=64, mask_token_id=MASK)
    result = q.generate(model, prompts, settings)
    answers = [row[len(p) : len(p) + 64] for row, p in zip(result.tokens, prompts, strict=True)]
    assert_same(answers, expected, margins)
    assert tokenizer.decode(answers[0]).startswith(" Paris")


@pytest.mark.soak
def test_what_it_drafts_and_verifies_is_the_same_text(greedy, model):
    """It never learned to draft, so most passes write one token; none writes another than it would by itself."""
    prompts, expected, margins = greedy
    settings = q.settings_for(model, gen_length=64, block_length=4, speculate=True, mask_token_id=MASK)
    result = q.generate(model, prompts, settings)
    answers = [row[len(p) : len(p) + 64] for row, p in zip(result.tokens, prompts, strict=True)]
    assert_same(answers, expected, margins)
    assert (result.nfe < 64).any()  # some drafts were kept all the same


def test_a_chat_through_its_template(tokenizer, reference, model):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Name the capital of Italy."}]
    ids = AutoTokenizer.from_pretrained(FOLDER).apply_chat_template(messages, add_generation_prompt=True).input_ids
    assert encode_chat(ChatWriter(tokenizer), messages) == ids
    expected, _ = generated(reference, tokenizer, [ids], 32)
    (row,) = expected.tolist()
    text = q.write(model, tokenizer, [messages], q.settings_for(model, gen_length=32))[0]
    assert text == tokenizer.decode(row[: row.index(EOS)] if EOS in row else row)
    assert "Rome" in text


def test_its_mask_token_is_a_special_token_that_it_never_met(tokenizer, tmp_path):
    config = convert(str(FOLDER), tmp_path / "ours", dtype=None, mask_token_id="auto")
    assert (config.mask_token_id, tokenizer.convert_ids_to_tokens(MASK)) == (MASK, "<gh_stars>")
    assert config.is_autoregressive
    assert MASK not in {i for row in rows_of_text(tokenizer) for i in row}
    written = json.loads((Path(tmp_path) / "ours" / "config.json").read_text())
    assert (written["mask_token_id"], written["live_vocab_size"]) == (MASK, 49_152)
    assert mask_token.unused(tokenizer, 49_152, "--mask-token-id")[0] == MASK
