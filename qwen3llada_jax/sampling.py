"""Writing by unmasking: LLaDA's sampler (arXiv 2502.09992, algorithms 4 and 5), one compiled program.

A canvas is the prompt followed by `gen_length` masks, cut into blocks of `block_length` that are filled from
left to right. Each of a block's steps runs the model once, proposes a token for every masked position of the
block, keeps the most confident ones and leaves ("remasks") the rest for later steps. A kept token never
changes. Which positions are masked is carried along, never read back from the ids.
"""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from qwen3llada_jax.config import VISIBILITIES, ModelConfig
from qwen3llada_jax.errors import InputError
from qwen3llada_jax.masks import Mask
from qwen3llada_jax.model import Qwen3LLaDA, check_tokens

REMASKING = ("low_confidence", "random", "random_topk")


@dataclass(frozen=True)
class SamplerConfig:
    """How to sample.

    Attributes:
        gen_length: tokens to write after the prompt.
        block_length: tokens of a block; None: what the model was trained with, else one block of at most 32.
        steps: forward passes over all blocks together, shared out evenly among them.
        temperature: 0 takes the likeliest token; above, one is drawn from softmax(logits / temperature).
        cfg_scale: strength w of classifier-free guidance, l_u + (w + 1)(l − l_u); 0: off, half the work.
        remasking: confidence that decides which proposals stay: `low_confidence` the probability of the
            proposed token, `random` a random number, `random_topk` the probability with noise of 1e-6 that
            breaks near-ties.
        visibility: who sees whom (masks.py); None: what the model was trained with.
        mask_token_id: None: the model's.
    """

    gen_length: int = 128
    block_length: int | None = None
    steps: int = 128
    temperature: float = 0.0
    cfg_scale: float = 0.0
    remasking: str = "low_confidence"
    visibility: str | None = None
    mask_token_id: int | None = None

    def __post_init__(self) -> None:
        for name in ("gen_length", "steps"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.block_length is not None and self.block_length < 1:
            raise InputError(f"block_length must be at least 1, not {self.block_length}")
        for name in ("temperature", "cfg_scale"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise InputError(f"{name} must be 0 or more, not {getattr(self, name)}")
        if self.remasking not in REMASKING:
            raise InputError(f"remasking {self.remasking!r} is unknown; choose one of {', '.join(REMASKING)}")
        if self.visibility is not None and self.visibility not in VISIBILITIES:
            raise InputError(f"visibility {self.visibility!r} is unknown; choose one of {', '.join(VISIBILITIES)}")

    def for_model(self, config: ModelConfig) -> "SamplerConfig":
        """This config with every None filled in from the model, and checked.

        Raises:
            InputError: no mask token, or lengths and steps that do not divide.
        """
        mask = config.mask_token_id if self.mask_token_id is None else self.mask_token_id
        if mask is None:
            raise InputError("the model names no mask token; import it with converters.from_hf, or set mask_token_id")
        if not 0 <= mask < config.vocab_size:
            raise InputError(f"mask_token_id {mask} is outside the embedding table (0 … {config.vocab_size - 1})")
        block = self.block_length or config.block_length or min(32, self.gen_length)
        if self.gen_length % block:
            raise InputError(
                f"gen_length {self.gen_length} is not a multiple of block_length {block}; "
                f"try {-(-self.gen_length // block) * block}"
            )
        blocks = self.gen_length // block
        if self.steps % blocks:
            raise InputError(
                f"steps {self.steps} is not a multiple of the {blocks} blocks (gen_length {self.gen_length} / "
                f"block_length {block}); try {-(-self.steps // blocks) * blocks}"
            )
        values = {**vars(self), "mask_token_id": mask, "block_length": block}
        return SamplerConfig(**{**values, "visibility": self.visibility or config.visibility})


class Canvas(NamedTuple):
    """What is on the page between two steps.

    Attributes:
        tokens: [B, L] ids; the mask token where nothing is written yet.
        is_masked: [B, L] positions still to be written.
        written_at: [B, L] the step (0, 1, …) at which a position was written, -1 for prompt and masks.
        confidence: [B, L] probability the model gave a token when it was written; 1 for the prompt.
        to_write: [B] masked positions of the current block when it was begun.
    """

    tokens: Int[Array, "B L"]
    is_masked: Bool[Array, "B L"]
    written_at: Int[Array, "B L"]
    confidence: Float[Array, "B L"]
    to_write: Int[Array, " B"]


class Generation(NamedTuple):
    """A finished text.

    Attributes:
        tokens: [B, P + gen_length] prompts, each followed at once by its answer (then padding, where a
            prompt is shorter than the longest).
        prompt_length: [B].
        written_at, confidence: as in `Canvas`.
        nfe: forward passes of the model.
    """

    tokens: Int[Array, "B L"]
    prompt_length: Int[Array, " B"]
    written_at: Int[Array, "B L"]
    confidence: Float[Array, "B L"]
    nfe: int

    def answers(self) -> list[list[int]]:
        """The written ids of each row."""
        gen_length = self.tokens.shape[1] - int(self.prompt_length.max())
        tokens, starts = np.asarray(self.tokens), np.asarray(self.prompt_length)
        return [row[start : start + gen_length].tolist() for row, start in zip(tokens, starts, strict=True)]


def generate(
    model: Qwen3LLaDA,
    prompts: Int[Array, "B P"] | Sequence[Sequence[int]],
    config: SamplerConfig = SamplerConfig(),
    *,
    key: PRNGKeyArray | None = None,
) -> Generation:
    """Write an answer to every prompt: the whole trajectory is one compiled program.

    Args:
        prompts: ids; rows may differ in length, and may be empty.
        key: randomness of temperature and of random remasking; None: `jax.random.key(0)`. A row's draws
            depend on the key, its row number and the step, not on the other rows.

    Raises:
        InputError: an id out of range, or settings that do not fit together.
    """
    config = config.for_model(model.config)
    canvas, prompt_length = blank_canvas(model, prompts, config)
    canvas = _run(model, canvas, prompt_length, _keys(key, len(prompt_length)), config)
    return _finished(canvas, prompt_length, config)


def watch(
    model: Qwen3LLaDA,
    prompts: Int[Array, "B P"] | Sequence[Sequence[int]],
    config: SamplerConfig = SamplerConfig(),
    *,
    key: PRNGKeyArray | None = None,
) -> Iterator[Canvas]:
    """The same as `generate`, step by step: the blank canvas, then the canvas after every step."""
    config = config.for_model(model.config)
    canvas, prompt_length = blank_canvas(model, prompts, config)
    keys = _keys(key, len(prompt_length))
    yield canvas
    for step in range(config.steps):
        canvas = _step_once(model, canvas, prompt_length, keys, jnp.int32(step), config)
        yield canvas


def finish(canvas: Canvas, prompts: Sequence[Sequence[int]], model: Qwen3LLaDA, config: SamplerConfig) -> Generation:
    """The `Generation` of the last canvas of `watch`."""
    return _finished(canvas, jnp.asarray([len(p) for p in prompts], jnp.int32), config.for_model(model.config))


def blank_canvas(
    model: Qwen3LLaDA, prompts: Int[Array, "B P"] | Sequence[Sequence[int]], config: SamplerConfig
) -> tuple[Canvas, Int[Array, " B"]]:
    """Prompts followed by masks, and the length of each prompt."""
    if any(np.ndim(p) != 1 for p in prompts):
        raise InputError("prompts must be rows of token ids: a list of lists, or an array [B, P]")
    rows = [np.asarray(p, np.int32) for p in prompts]
    if not rows:
        raise InputError("no prompt to write after")
    for row in rows:
        check_tokens(row, model.config.vocab_size)
    lengths = np.array([len(row) for row in rows], np.int32)
    shape = (len(rows), int(lengths.max()) + config.gen_length)
    tokens = np.full(shape, config.mask_token_id, np.int32)
    for line, row in zip(tokens, rows, strict=True):
        line[: len(row)] = row
    place = np.arange(shape[1])[None] - lengths[:, None]
    is_masked = (place >= 0) & (place < config.gen_length)
    canvas = Canvas(
        jnp.asarray(tokens),
        jnp.asarray(is_masked),
        jnp.full(shape, -1, jnp.int32),
        jnp.asarray(~is_masked, jnp.float32),
        jnp.zeros(shape[:1], jnp.int32),
    )
    return canvas, jnp.asarray(lengths)


@functools.partial(jax.jit, static_argnames="config")
def _run(model: Qwen3LLaDA, canvas: Canvas, prompt_length: Array, keys: Array, config: SamplerConfig) -> Canvas:
    def body(step: Array, canvas: Canvas) -> Canvas:
        return unmask_step(model, canvas, prompt_length, keys, step, config)

    return jax.lax.fori_loop(0, config.steps, body, canvas)


def unmask_step(
    model: Qwen3LLaDA,
    canvas: Canvas,
    prompt_length: Int[Array, " B"],
    keys: PRNGKeyArray,
    step: Int[Array, ""],
    config: SamplerConfig,
) -> Canvas:
    """One forward pass and what it writes.

    Args:
        keys: [B] one per row.
        step: counted over all blocks.
        config: complete, from `for_model`.
    """
    S = config.block_length
    assert S is not None
    assert config.mask_token_id is not None
    steps_per_block = config.steps * S // config.gen_length
    block, step_in_block = step // steps_per_block, step % steps_per_block
    keys = jax.vmap(lambda k: jax.random.fold_in(k, step))(keys)

    where = prompt_length[:, None] + block * S + jnp.arange(S)  # B S: the block's positions in the canvas
    is_masked = jnp.take_along_axis(canvas.is_masked, where, axis=1)
    to_write = jnp.where(step_in_block == 0, is_masked.sum(axis=1), canvas.to_write)
    share = to_write // steps_per_block + (step_in_block < to_write % steps_per_block)

    logits = block_logits(model, canvas.tokens, prompt_length, where, config)  # B S V
    proposal, probability = propose(keys, logits, candidates(model, config.mask_token_id), config.temperature)
    confidence = confidence_of(keys, probability, config.remasking)
    keep = most_confident(confidence, is_masked, share)

    rows = jnp.arange(where.shape[0])[:, None]

    def write(array: Array, new: Array | float) -> Array:
        return array.at[rows, where].set(jnp.where(keep, new, array[rows, where]))

    return Canvas(
        write(canvas.tokens, proposal),
        canvas.is_masked.at[rows, where].set(is_masked & ~keep),
        write(canvas.written_at, step.astype(jnp.int32)),
        write(canvas.confidence, probability),
        to_write,
    )


_step_once = jax.jit(unmask_step, static_argnames="config")


def block_logits(
    model: Qwen3LLaDA,
    tokens: Int[Array, "B L"],
    prompt_length: Int[Array, " B"],
    where: Int[Array, "B S"],
    config: SamplerConfig,
) -> Float[Array, "B S V"]:
    """Logits at the positions `where`, guided if asked for; the head runs on those positions only."""
    B, L = tokens.shape
    end = prompt_length[:, None] + config.gen_length
    guided = config.cfg_scale > 0
    assert config.mask_token_id is not None
    if guided:
        is_prompt = jnp.arange(L)[None] < prompt_length[:, None]
        tokens = jnp.concatenate([tokens, jnp.where(is_prompt, config.mask_token_id, tokens)])
        prompt_length, where, end = (jnp.concatenate([x, x]) for x in (prompt_length, where, end))
    blocks = config.visibility != "full"
    mask = Mask(
        config.visibility or "full",
        config.block_length if blocks else None,
        prompt_sees_answer=model.config.prompt_sees_answer and config.visibility == "block_bias",
        prompt_length=prompt_length if blocks else None,
        is_real=jnp.arange(L)[None] < end,
    )
    hidden = model.hidden(tokens, mask)
    logits = model.logits(jnp.take_along_axis(hidden, where[..., None], axis=1))
    if not guided:
        return logits
    with_prompt, without = logits[:B], logits[B:]
    return without + (config.cfg_scale + 1) * (with_prompt - without)


def candidates(model: Qwen3LLaDA, mask_token_id: int) -> Bool[Array, " V"]:
    """Ids that may be written: those a token owns, but never the mask token."""
    ids = jnp.arange(model.config.vocab_size)
    live = model.config.vocab_size if model.config.live_vocab_size is None else model.config.live_vocab_size
    return (ids < live) & (ids != mask_token_id)


def propose(
    keys: PRNGKeyArray, logits: Float[Array, "B S V"], allowed: Bool[Array, " V"], temperature: float
) -> tuple[Int[Array, "B S"], Float[Array, "B S"]]:
    """A token for every position, and the probability the model gives it (at temperature 1).

    Above temperature 0 the token is argmax(logits + τ · Gumbel), a draw from softmax(logits / τ): the same
    as LLaDA's exp(logits) / (−log u)^τ, in log space, where float32 is enough.
    """
    scores = jnp.where(allowed, logits, -jnp.inf)
    if temperature > 0:
        noise = jax.vmap(lambda k: jax.random.gumbel(jax.random.fold_in(k, 0), logits.shape[1:], jnp.float32))(keys)
        scores = scores + temperature * noise
    token = jnp.argmax(scores, axis=-1).astype(jnp.int32)
    picked = jnp.take_along_axis(logits, token[..., None], axis=-1)[..., 0]
    return token, jnp.exp(picked - jax.nn.logsumexp(logits, axis=-1))


def confidence_of(keys: PRNGKeyArray, probability: Float[Array, "B S"], remasking: str) -> Float[Array, "B S"]:
    """How sure we are of each proposal, by the rule `remasking`; higher stays."""
    S = probability.shape[1:]
    match remasking:
        case "low_confidence":
            return probability
        case "random":
            return jax.vmap(lambda k: jax.random.uniform(jax.random.fold_in(k, 1), S))(keys)
        case _:
            return probability + 1e-6 * jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, 1), S))(keys)


def most_confident(
    confidence: Float[Array, "B S"], is_masked: Bool[Array, "B S"], count: Int[Array, " B"]
) -> Bool[Array, "B S"]:
    """The `count` masked positions of highest confidence in each row, the first of equals."""
    order = jnp.argsort(jnp.where(is_masked, -confidence, jnp.inf), axis=1, stable=True)
    rank = jnp.argsort(order, axis=1)
    return (rank < count[:, None]) & is_masked


def _keys(key: PRNGKeyArray | None, rows: int) -> PRNGKeyArray:
    key = jax.random.key(0) if key is None else key
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(rows))


def _finished(canvas: Canvas, prompt_length: Array, config: SamplerConfig) -> Generation:
    nfe = config.steps * (2 if config.cfg_scale > 0 else 1)
    return Generation(canvas.tokens, prompt_length, canvas.written_at, canvas.confidence, nfe)
