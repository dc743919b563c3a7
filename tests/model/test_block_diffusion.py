"""[noisy ; clean]: each block's logits are those of a pass of its own behind clean text, however rows are laid out."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import qwen3llada_jax as q
from qwen3llada_jax.block_diffusion import noisy_clean
from qwen3llada_jax.model import coordinates

CONFIG = q.ModelConfig(64, 32, 48, 3, 4, 2, 8, rope_theta=1e4)
MASK, LONGEST = 63, 32
SLOW = pytest.mark.slow


@pytest.fixture(scope="module")
def model():
    return q.Qwen3LLaDA(CONFIG, rngs=nnx.Rngs(1))


def rows_of(seed: int, B: int, L: int) -> tuple[np.ndarray, np.ndarray]:
    """(noisy, clean) ids."""
    generator = np.random.default_rng(seed)
    clean = generator.integers(0, 60, (B, L))
    return np.where(generator.random((B, L)) < 0.5, MASK, clean), clean


@jax.jit
def _read(model, ids, allowed):
    return model.hidden(ids, allowed)


def alone(model, noisy, clean, *, S: int, P: int = 0, shift: bool, causal: bool) -> np.ndarray:
    """[L, D] of one document: of each token the hidden state that predicts it, each block by a pass of its own."""
    L = len(clean)
    found = np.full((L, CONFIG.hidden_size), np.nan, np.float32)

    def read(ids, begin):
        """The last block whole, what stands before it in blocks or from left to right."""
        place, block = np.arange(len(ids)), (np.arange(len(ids)) - P) // S
        number = np.where(place < P, 0, P + block * S)
        if causal:
            number = np.where(place < begin, place, begin)
        allowed = np.zeros((1, LONGEST, LONGEST), bool)  # padded, so that one program does for all
        allowed[0, : len(ids), : len(ids)] = number[:, None] >= number
        padded = np.zeros((1, LONGEST), int)
        padded[0, : len(ids)] = ids
        return np.asarray(_read(model, padded, allowed))[0, : len(ids)]

    for begin in ([0] if P else []) + list(range(P, L, S)):
        end = P if begin < P else min(begin + S, L)
        hidden = read(np.concatenate([clean[:begin], noisy[begin:end]]), begin)
        if not shift:
            found[begin:end] = hidden[begin:]
            continue
        found[begin + 1 : end] = hidden[begin : end - 1]
        if begin:  # the last clean token before the block, under what it sees as context
            found[begin] = read(clean[:begin], begin)[-1]
    return found


def asked(model, rows) -> np.ndarray:
    """[B, L, D]"""
    return np.asarray(_asked(model, rows.inputs, rows.mask, rows.at))


@jax.jit
def _asked(model, inputs, mask, at):
    return model.hidden(inputs, mask, where=at)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("S", [pytest.param(1, marks=SLOW), 4, pytest.param(7, marks=SLOW), 40])
def test_each_block_is_as_in_a_pass_of_its_own(model, S, shift, causal):
    noisy, clean = rows_of(S, 2, 23)
    rows = noisy_clean(noisy, clean, q.Mask("block_causal", S), shift=shift, causal_context=causal)
    found = asked(model, rows)
    for b in range(2):
        expected = alone(model, noisy[b], clean[b], S=S, shift=shift, causal=causal)
        known = ~np.isnan(expected[:, 0])
        assert known.sum() == 23 - shift
        np.testing.assert_allclose(found[b, known], expected[known], atol=1e-5)


@pytest.mark.parametrize("causal", [False, pytest.param(True, marks=SLOW)])
@pytest.mark.parametrize("shift", [False, True])
def test_prompts_and_padding(model, shift, causal):
    """A prompt is one block that sees itself whole, unless context is read from left to right; padding is not seen."""
    noisy, clean = rows_of(3, 3, 24)
    prompts, real = np.array([5, 0, 9]), np.array([24, 17, 20])
    noisy = np.where(np.arange(24)[None] < prompts[:, None], clean, noisy)
    mask = q.Mask("block_causal", 4, prompt_length=prompts, is_real=np.arange(24)[None] < real[:, None])
    for given in (mask, dataclasses.replace(mask, block_length=jnp.int32(4))):
        found = asked(model, noisy_clean(noisy, clean, given, shift=shift, causal_context=causal, longest_block=6))
        for b in range(3):
            P, end = int(prompts[b]), int(real[b])
            expected = alone(model, noisy[b, :end], clean[b, :end], S=4, P=P, shift=shift, causal=causal)
            first = max(P, 1) if shift else P
            np.testing.assert_allclose(found[b, first:end], expected[first:], atol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("shift", [False, True])
def test_documents_of_a_packed_row(model, shift, causal):
    """Each counts its blocks from its own beginning and sees itself alone."""
    noisy, clean = rows_of(4, 1, 29)
    ends = [11, 12, 29]
    begins = [0, *ends[:-1]]
    segment = np.repeat(np.arange(3), np.diff([0, *ends]))[None]
    position = np.concatenate([np.arange(e - b) for b, e in zip(begins, ends, strict=True)])[None]
    mask = q.Mask("block_causal", 4, segment_ids=segment, positions=position)
    found = asked(model, noisy_clean(noisy, clean, mask, shift=shift, causal_context=causal))[0]
    for begin, end in zip(begins, ends, strict=True):
        expected = alone(model, noisy[0, begin:end], clean[0, begin:end], S=4, shift=shift, causal=causal)
        np.testing.assert_allclose(found[begin + shift : end], expected[shift:], atol=1e-5)


@pytest.mark.parametrize(
    ("S", "is_data", "shift"),
    [
        (4, False, True),
        (5, True, False),
        *(pytest.param(S, False, False, marks=SLOW) for S in (1, 4, 16)),
        *(pytest.param(S, False, True, marks=SLOW) for S in (1, 16)),
        pytest.param(5, True, True, marks=SLOW),
        *(pytest.param(64, True, shift, marks=SLOW) for shift in (False, True)),
    ],
)
def test_runs_leave_out_what_nobody_sees(model, S, is_data, shift):
    """They change no number, and where blocks are even nearly half of all pairs is left out."""
    noisy, clean = rows_of(5, 2, 64)
    mask = q.Mask("block_causal", jnp.int32(S) if is_data else S)
    rows = noisy_clean(noisy, clean, mask, shift=shift, longest_block=S)
    assert rows.mask.runs is not None
    whole = rows._replace(mask=dataclasses.replace(rows.mask, runs=None))
    first = slice(int(shift), None)  # the first token of a row is asked nowhere
    np.testing.assert_allclose(asked(model, rows)[:, first], asked(model, whole)[:, first], atol=1e-6)
    tiles = coordinates.tiles(rows.mask)
    pairs = sum((run.end - run.begin) * (sum(e - b for b, e in run.keys) + (run.own or 0)) for run in tiles.runs)
    seen = int(coordinates.dense(rows.mask, 128).sum())
    assert sum(int(x.sum()) for x in (*tiles.allowed, *tiles.own) if x is not None) == seen
    if S <= 16 and not is_data:
        assert pairs <= 0.38 * 128**2


@SLOW
def test_blocks_of_one_token_with_shift_are_autoregression(model):
    """Whatever is noised: each token is asked where those before it are all that is seen."""
    noisy, clean = rows_of(6, 2, 20)
    rows = noisy_clean(noisy, clean, q.Mask("block_causal", 1), shift=True)
    causal = np.asarray(model.hidden(jnp.asarray(clean), q.Mask("block_causal", 1)))
    np.testing.assert_allclose(asked(model, rows)[:, 1:], causal[:, :-1], atol=1e-6)


def test_one_block_is_a_row_of_masked_diffusion(model):
    noisy, clean = rows_of(7, 2, 20)
    rows = noisy_clean(noisy, clean, q.Mask("block_causal", 20))
    np.testing.assert_allclose(asked(model, rows), np.asarray(model.hidden(jnp.asarray(noisy))), atol=1e-6)


def test_what_is_no_row_of_blocks_is_refused():
    noisy, clean = rows_of(8, 2, 20)
    with pytest.raises(q.InputError, match="block_causal"):
        noisy_clean(noisy, clean, q.Mask("full"))
    with pytest.raises(q.InputError, match="one shape"):
        noisy_clean(noisy[:, :-1], clean, q.Mask("block_causal", 4))
