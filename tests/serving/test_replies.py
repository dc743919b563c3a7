"""What a stream says of texts that grow in any steps: nothing that it must take back, and all of the text."""

import json

import pytest
from conftest import TINY
from hypothesis import given, settings
from hypothesis import strategies as st

import qwen3llada_jax as q
from qwen3llada_jax.text.tokens import load_tokenizer
from qwen3llada_jax.writing.completions import text_of
from qwen3llada_jax.writing.requests import Request
from sample.serving.jobs import Job, Progress
from sample.serving.replies import Reply, Told, event
from sample.serving.texts import covered, said, tokens_of

TOKENIZER = load_tokenizer(TINY)
TEXT = st.text(st.sampled_from("ab ,\n你好🙂é👩‍🚀ß"), max_size=12)
IDS = st.one_of(TEXT.map(lambda text: TOKENIZER(text).input_ids), st.lists(st.integers(0, 1023), max_size=12))
STOPS = st.lists(st.text(st.sampled_from("ab 你,"), min_size=1, max_size=3), max_size=2)
PROMPT = Request(0, 0, "prompt", None, (5,))


def job_of(stops=(), request=PROMPT):
    return Job(request, q.SamplerConfig(), 0, 64, 64, tuple(stops), lambda: None)


def grown(ids, steps, stops, *, finish="stop"):
    """Progress in steps, its last one finished; text that has met a stop string ends there, as the writer has it."""
    for end in sorted({min(step, len(ids)) for step in steps}):
        yield Progress(tuple(ids[:end]), (None,), (1,) * (end + 1), (0.5,) * (end + 1), end)
        if said(TOKENIZER, PROMPT, ids[:end], stops, whole=False)[1]:
            yield Progress(tuple(ids[:end]), (), (1,) * end, (0.5,) * end, end, finish)
            return
    yield Progress(tuple(ids), (), (1,) * len(ids), (0.5,) * len(ids), len(ids), finish)


@settings(deadline=None, max_examples=200)
@given(IDS, st.lists(st.integers(0, 12), max_size=6), STOPS, st.booleans())
def test_the_pieces_of_a_stream_are_the_text(ids, steps, stops, is_chat):
    job, told = job_of(stops), [Told()]
    reply = Reply(TOKENIZER, "m", [job], is_chat, logprobs=True, drafts=True)
    chunks = []
    for progress in grown(ids, steps, stops):
        job.tell(progress)
        chunks += [chunk["choices"][0] for chunk in reply.chunks(told)]
    pieces = [chunk["delta"]["content"] if is_chat else chunk["text"] for chunk in chunks]
    whole = text_of(TOKENIZER, ids)
    ends = [whole.find(stop) for stop in stops if stop in whole]
    assert "".join(pieces) == whole[: min(ends, default=len(whole))]
    tokens = [token for chunk in chunks for token in chunk["logprobs"]["content"]]
    assert len(tokens) == covered(TOKENIZER, ids, "".join(pieces)) if ends else len(tokens) == len(ids)
    (choice,) = reply.whole()["choices"]
    assert (choice["message"]["content"] if is_chat else choice["text"]) == "".join(pieces)
    assert choice["logprobs"]["content"] == tokens
    assert [chunk["finish_reason"] for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    for chunk in chunks:
        assert json.loads(event(chunk)[6:]) == chunk


@settings(deadline=None)
@given(st.lists(st.one_of(st.none(), st.integers(0, 1023)), min_size=1, max_size=12), st.data())
def test_a_text_with_holes_is_said_up_to_the_next_hole(ids, data):
    if None not in ids:
        ids = [*ids, None]
    filling = data.draw(st.lists(st.integers(0, 1023), min_size=ids.count(None), max_size=ids.count(None)))
    request, sent = Request(0, 0, "infill", None, tuple(ids)), ""
    for count in range(len(filling) + 1):
        text, _ = said(TOKENIZER, request, filling[:count], (), whole=count == len(filling))
        assert text.startswith(sent)
        sent = text
    rest = iter(filling)
    assert sent == text_of(TOKENIZER, [next(rest) if i is None else i for i in ids], skip_special_tokens=False)


def test_a_slow_reader_is_told_the_latest_alone():
    job, told = job_of(), [Told()]
    reply = Reply(TOKENIZER, "m", [job], is_chat=False)
    ids = TOKENIZER("The king is here").input_ids
    for progress in grown(ids, range(len(ids)), ()):
        job.tell(progress)
    (chunk,) = reply.chunks(told)
    assert chunk["choices"][0]["text"] == "The king is here"
    assert list(reply.chunks(told)) == []


@pytest.mark.parametrize(
    ("ids", "most", "expected"),
    [
        ([1, 2, 9, 3], 8, ([1, 2], True)),
        ([1, 2, 3], 3, ([1, 2, 3], True)),
        ([1, 2], 3, ([1, 2], False)),
        ([9], 1, ([], True)),
    ],
)
def test_where_a_text_ends(ids, most, expected):
    assert tokens_of(ids, most, (9,)) == expected


def test_usage_counts_a_prompt_once():
    asked = [Request(number, sample, "prompt", None, (1,) * (3 + number)) for number in (0, 1) for sample in (0, 1)]
    jobs = [job_of(request=request) for request in asked]
    for job in jobs:
        job.tell(Progress((7, 8), (), (1, 2), (0.5, 0.5), 4, "length"))
    usage = Reply(TOKENIZER, "m", jobs, is_chat=False).whole()["usage"]
    assert usage == {
        "prompt_tokens": 7,
        "completion_tokens": 8,
        "total_tokens": 15,
        "prompt_tokens_details": {"cached_tokens": 0},
        "forward_passes": 16,
        "tokens_per_forward": 0.5,
    }
