"""What a server answers, asked by OpenAI's own client: the texts of sample.generate, alone and beside others."""

import itertools
import json
import math
from concurrent.futures import ThreadPoolExecutor

import httpx2 as httpx
import openai
import pytest
from conftest import TINY

import qwen3llada_jax as q
from qwen3llada_jax.writing import completions, requests
from qwen3llada_jax.writing.opening import open_folder

pytestmark = pytest.mark.slow
BLOCKS = {"block_length": 8, "visibility": "block_causal"}
PROMPTS = ["ROMEO:\nMy", "What say you", "The king", "Good 你好 🙂 night", "O", "JULIET:\nGood pilgrim, you do"]


@pytest.fixture(scope="module")
def folder():
    return open_folder(TINY)


@pytest.fixture(scope="module")
def written(folder):
    """(text, NFE) as sample.generate writes it."""
    model = folder.load("float32")

    def write(row, seed=0, samples=1, chat=False, **settings):
        config = folder.ending(q.SamplerConfig(**(BLOCKS | {"gen_length": 16} | settings)))
        asked = requests.from_rows([row], folder.tokenizer, chat=chat, samples=samples)
        batches = completions.write(model, folder, asked, config, seed=seed, rows=samples)
        return [(c.text, c.nfe) for batch in batches for c in batch.completions]

    return write


def test_a_completion_is_what_generate_writes(client, written):
    for prompt, settings in itertools.product(PROMPTS[:3], [{}, {"threshold": 0.3}, {"temperature": 0.9}]):
        found = client.completions.create(model="tiny-qwen3", prompt=prompt, max_tokens=16, seed=3, extra_body=settings)
        (text, nfe) = written({"prompt": prompt}, seed=3, **settings)[0]
        assert found.choices[0].text == text
        passes = found.usage.forward_passes
        assert nfe - 8 < passes <= nfe  # what fills the last block up need not be written
        assert found.usage.tokens_per_forward == found.usage.completion_tokens / passes
        assert found.seed == 3


def test_a_chat_is_what_generate_answers(client, written):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who art thou?"}]
    found = client.chat.completions.create(model="tiny-qwen3", messages=messages, max_tokens=16)
    assert found.choices[0].message.content == written({"messages": messages}, chat=True)[0][0]
    assert found.choices[0].message.role == "assistant"
    parts = [{"role": "user", "content": [{"type": "text", "text": "Who art thou?"}]}]
    assert client.chat.completions.create(model="tiny-qwen3", messages=parts, max_tokens=16).choices[0].message.content


def test_texts_are_the_same_among_fifteen_others(client, written):
    asks = [(prompt, seed, t) for prompt, seed, t in itertools.product(PROMPTS, (1, 2), (0.0, 0.8))][:16]

    def ask(one):
        prompt, seed, t = one
        made = client.completions.create(model="tiny-qwen3", prompt=prompt, max_tokens=16, seed=seed, temperature=t)
        return made.choices[0].text

    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(ask, asks))
    assert found == [written({"prompt": p}, seed=s, temperature=t)[0][0] for p, s, t in asks]


def test_n_texts_are_the_samples_of_a_prompt(client, written):
    made = client.completions.create(
        model="tiny-qwen3", prompt=PROMPTS[:2], n=3, max_tokens=16, seed=5, temperature=0.9
    )
    assert [choice.index for choice in made.choices] == list(range(6))
    alone = written({"prompt": PROMPTS[0]}, seed=5, samples=3, temperature=0.9)
    assert [choice.text for choice in made.choices[:3]] == [text for text, _ in alone]
    assert len({choice.text for choice in made.choices}) == 6


@pytest.mark.parametrize("settings", [{}, {"threshold": 0.2}, {"revise": 2, "steps": 16}])
def test_a_stream_says_the_text_piece_by_piece(client, settings):
    asked = dict(model="tiny-qwen3", prompt=PROMPTS[3], max_tokens=32, seed=1, temperature=0.9, logprobs=0)
    whole = client.completions.create(**asked, extra_body=settings)
    options = {"include_usage": True, "drafts": True}
    chunks = list(client.completions.create(**asked, stream=True, stream_options=options, extra_body=settings))
    *pieces, last = chunks
    assert "".join(chunk.choices[0].text for chunk in pieces) == whole.choices[0].text
    assert [c.choices[0].finish_reason for c in pieces] == [None] * (len(pieces) - 1) + ["length"]
    assert last.choices == []
    assert last.usage == whole.usage
    tokens = [token for chunk in pieces for token in chunk.choices[0].logprobs.tokens]
    assert tokens == whole.choices[0].logprobs.tokens
    offsets = [offset for chunk in pieces for offset in chunk.choices[0].logprobs.text_offset]
    assert offsets == sorted(offsets)
    drafts = [chunk.choices[0].draft["tokens"] for chunk in pieces]
    assert drafts[-1] == []
    assert any(token is None for draft in drafts for token in draft)


def test_log_probabilities_are_those_of_the_pass_that_wrote(client):
    messages = [{"role": "user", "content": "Who art thou?"}]
    made = client.chat.completions.create(model="tiny-qwen3", messages=messages, max_tokens=16, logprobs=True)
    content = made.choices[0].logprobs.content
    assert "".join(token.token for token in content) == made.choices[0].message.content
    assert all(-100 < token.logprob <= 0 and math.isfinite(token.logprob) for token in content)
    assert b"".join(bytes(token.bytes) for token in content).decode() == made.choices[0].message.content
    assert sorted({token.model_extra["pass"] for token in content})[0] == 1


@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_stop_string_ends_the_text_before_it(client, is_streamed):
    asked = dict(model="tiny-qwen3", prompt="ROMEO:\nMy", max_tokens=64, seed=2, temperature=0.8)
    text = client.completions.create(**asked).choices[0].text
    stop = text[9:13]
    assert stop
    found = client.completions.create(**asked, stop=[stop, "never seen"], stream=is_streamed)
    choices = [chunk.choices[0] for chunk in found] if is_streamed else [found.choices[0]]
    assert "".join(choice.text for choice in choices) == text[: text.index(stop)]
    assert choices[-1].finish_reason == "stop"


@pytest.mark.parametrize("settings", [{}, {"stop": ["e"]}, {"extra_body": {"threshold": 0.1}}])
def test_a_stream_with_drafts_ends_within_a_block(client, settings):
    asked = dict(model="tiny-qwen3", prompt="The", max_tokens=5, seed=1, temperature=0.9, **settings)
    chunks = list(client.completions.create(**asked, stream=True, stream_options={"drafts": True}, logprobs=0))
    whole = client.completions.create(**asked, logprobs=0).choices[0]
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.text
    assert chunks[-1].choices[0].finish_reason == whole.finish_reason
    assert [o for chunk in chunks for o in chunk.choices[0].logprobs.text_offset] == whole.logprobs.text_offset


def test_offsets_count_characters(client):
    made = client.completions.create(
        model="tiny-qwen3", prompt="é 🙂", max_tokens=32, seed=3, temperature=2.0, echo=True, logprobs=0
    )
    choice = made.choices[0]
    begins = choice.logprobs.text_offset
    for token, begin in zip(choice.logprobs.tokens, begins, strict=True):
        if "\ufffd" not in token:
            assert choice.text[begin : begin + len(token)] == token


def test_what_is_not_a_multiple_of_a_block_is_cut(client):
    made = client.completions.create(model="tiny-qwen3", prompt="The", max_tokens=5)
    whole = client.completions.create(model="tiny-qwen3", prompt="The", max_tokens=8, logprobs=0)
    assert made.usage.completion_tokens == 5
    assert made.choices[0].text == "".join(whole.choices[0].logprobs.tokens[:5])
    assert made.choices[0].finish_reason == "length"


def test_holes_are_filled(client, written):
    asked = "My <mask:4> is <mask>."
    made = client.completions.create(model="tiny-qwen3", prompt=asked, extra_body={"holes": True})
    (text, _) = written({"infill": asked})[0]
    assert made.choices[0].text == text
    assert made.usage.completion_tokens == 5
    streamed = client.completions.create(model="tiny-qwen3", prompt=asked, stream=True, extra_body={"holes": True})
    assert "".join(chunk.choices[0].text for chunk in streamed) == text
    few = {"holes": True, "steps": 4}
    made = client.completions.create(model="tiny-qwen3", prompt="My <mask:4>.", extra_body=few)
    assert (made.choices[0].text, made.usage.forward_passes) == written({"infill": "My <mask:4>."}, steps=4)[0]
    between = client.completions.create(model="tiny-qwen3", prompt="My ", suffix=" love", max_tokens=5)
    assert between.usage.completion_tokens == 5
    assert between.choices[0].finish_reason == "stop"


def test_a_second_turn_does_not_read_the_first_again(client, written):
    said = [{"role": "user", "content": "Who art thou, and what is thy name, good sir?"}]
    for _ in range(2):
        made = client.chat.completions.create(model="tiny-qwen3", messages=said, max_tokens=16)
        answer = made.choices[0].message.content
        assert answer == written({"messages": said}, chat=True)[0][0]
        known = made.usage.prompt_tokens_details.cached_tokens
        said += [{"role": "assistant", "content": answer}, {"role": "user", "content": "And then?"}]
    assert known >= made.usage.prompt_tokens // 2


def test_ids_echo_and_the_models_list(client, folder):
    ids = folder.tokenizer("The king").input_ids
    texts = [
        client.completions.create(model="tiny-qwen3", prompt=prompt, max_tokens=8, echo=True).choices[0].text
        for prompt in (ids, "The king", [ids])
    ]
    assert texts[0] == texts[1] == texts[2]
    assert texts[0].startswith("The king")
    assert [model.id for model in client.models.list()] == ["tiny-qwen3"]
    assert client.models.retrieve("tiny-qwen3").id == "tiny-qwen3"


WRONG = [
    ({"tempersture": 1}, "did you mean 'temperature'?"), ({"gen_length": 4}, "max_tokens"), ({"n": 17}, "n: 17"),
    ({"threshold": 7}, "threshold"), ({"block_length": "8"}, "block_length"), ({"logit_bias": {"5": 3}}, "forbid"),
    ({"max_tokens": 0}, "max_tokens"), ({"max_tokens": 100000}, "--max-length"), ({"top_p": 0.5}, "temperature"),
    ({"stop": [""]}, "stop"), ({"prompt": []}, "prompt"), ({"prompt": [1088]}, "outside the vocabulary"),
    ({"seed": -1}, "seed"), ({"logprobs": 5}, "logprobs"), ({"holes": True}, "nothing to fill"),
    ({"suffix": "a", "holes": True}, "suffix and holes"), ({"tools": []}, "no such field"), ({"prompt": "\ud800"}, ""),
    ({"stream_options": {"drafts": True}}, "stream: true"), ({"parallel_blocks": True}, "parallel_blocks"),
    ({"threshold": 0.9, "factor": 1.0}, "threshold and factor"), ({"block_length": 1 << 30}, "block_length"),
    ({"max_tokens": 10**30}, "max_tokens"), ({"prompt": [None] * 9}, "prompt"), ({"prompt": ["a"] * 17}, "prompt"),
    ({"prompt": "<mask:9999>", "holes": True}, "tokens"), ({"suffix": "b", "max_tokens": 4000}, "--max-length"),
    ({"forbid": list(range(9))}, "forbid"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "part"), WRONG, ids=[str(body)[:40] for body, _ in WRONG])
def test_what_is_wrong_is_named(served, body, part):
    found = served.post("completions", **({"prompt": "a"} | body))
    assert found.status_code == 400, found.text
    error = found.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert part in error["message"]
    assert len(error["message"]) < 500


def test_pages_of_elsewhere_may_not_ask(served):
    for origin, status in (("http://evil.example", 403), (served.url, 200)):
        body = json.dumps({"prompt": "a", "max_tokens": 8})
        found = httpx.post(f"{served.url}/v1/completions", content=body, headers={"Origin": origin}, timeout=60)
        assert found.status_code == status


def test_errors_are_the_clients_own(client, served):
    with pytest.raises(openai.NotFoundError) as unknown:
        client.completions.create(model="gpt-4", prompt="a")
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(model="tiny-qwen3", messages=[{"role": "assistant", "content": "a"}])
    assert wrong.value.param == "messages"
    neutral = {"frequency_penalty": 0, "presence_penalty": 0, "logit_bias": {}, "best_of": 1}
    assert client.completions.create(model="tiny-qwen3", prompt="a", max_tokens=8, **neutral).choices[0].text
