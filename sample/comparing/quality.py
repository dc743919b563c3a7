"""How good a text is: whether it is right, where an answer is known, else how likely and how varied it is.

`sample.compare` holds a written text against a reference, looking at both alike:

exact         the texts, blanks at both ends aside
contains      the reference stands somewhere in the text
last-number   their last numbers, by value: `#### 1,800`, `$1800.` and `1800.00` are the same
regex=…       the first match of a pattern (its first group, if it has one), blanks at both ends aside

and as lm-evaluation-harness does for GSM8K, by its task's two filters; the reference is what stands behind its `#### `,
and commas, dollars and a last point do not count:

gsm8k-strict     the first number behind `#### `
gsm8k-flexible   the last number of the text
"""

import functools
import re
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

import qwen3llada_jax as q
from qwen3llada_jax.errors import InputError
from qwen3llada_jax.io.jsonl import shortened
from qwen3llada_jax.model.config import ModelConfig
from qwen3llada_jax.sampling.config import SamplerConfig
from qwen3llada_jax.sampling.layout import blocks_of
from qwen3llada_jax.sampling.parameters import Structure
from qwen3llada_jax.sampling.passes.forward import coordinates_of

KINDS = ("exact", "contains", "last-number", "gsm8k-strict", "gsm8k-flexible", "regex=PATTERN")
Match = Callable[[str, str], bool]
_NUMBER = re.compile(r"[-−]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)", re.ASCII)
_BEHIND_HASHES = re.compile(r"#### (-?[0-9.,]+)")
_ANY_NUMBER = re.compile(r"-?[$0-9.,]{2,}|-?[0-9]+")
_EMPTY_THOUGHT = re.compile(r"\s*<think>\s*</think>\s*")


def match_of(text: str) -> tuple[str, Match]:
    """(its name, whether a written text and a reference match).

    Raises:
        InputError: no such way to match, or a pattern that is none.
    """
    name, equals, pattern = text.partition("=")
    if name == "regex" and equals:
        try:
            return name, _same(_first_match(re.compile(pattern)))
        except re.error as error:
            raise InputError(f"--match {text!r}: the pattern is none ({error})") from error
    if text == "contains":
        return name, lambda written, right: right.strip() in written
    if text == "exact":
        return name, lambda written, right: written.strip() == right.strip()
    if text == "last-number":
        return name, _same(last_number)
    if text in ("gsm8k-strict", "gsm8k-flexible"):
        return name, _gsm8k(_BEHIND_HASHES if text == "gsm8k-strict" else _ANY_NUMBER, 0 if "strict" in text else -1)
    raise InputError(f"--match {text!r} is unknown; choose one of {', '.join(KINDS)}")


def check_references(match: Match, answers: Sequence[str | None], what: str) -> None:
    """Refuse references that do not even match themselves: nothing could be right.

    Raises:
        InputError: naming the first.
    """
    for number, answer in enumerate(answers, 1):
        if answer is not None and not match(answer, answer):
            raise InputError(
                f"--match {what}: the answer of prompt {number} has none of it ({shortened(answer)!r}); match otherwise"
            )


def without_empty_thought(text: str) -> str:
    """A text without the empty think block that Qwen3's chat template puts at the head of an answer."""
    found = _EMPTY_THOUGHT.match(text)
    return text[found.end() :] if found else text


def last_number(text: str) -> Decimal | None:
    """The last number of a text, by value; commas group digits."""
    found = _NUMBER.findall(text)
    return Decimal(found[-1].replace(",", "").replace("−", "-")) if found else None


def _first_match(pattern: re.Pattern[str]) -> Callable[[str], str | None]:
    def find(text: str) -> str | None:
        found = pattern.search(text)
        return None if found is None else (found[1 if pattern.groups else 0] or "").strip()

    return find


def _gsm8k(pattern: re.Pattern[str], which: int) -> Match:
    """The first or last match of the written text is the reference's number."""

    def match(written: str, right: str) -> bool:
        found = pattern.findall(written)
        return bool(found) and _bare(found[which]) == _bare(right) != ""

    return match


def _bare(text: str) -> str:
    """What the task compares: without commas, dollars, all before `#### `, and a point at the end."""
    return re.sub(r"\.$", "", re.sub(r"(?s).*#### ", "", re.sub(r"[,$]", "", text))).strip()


def _same(look: Callable[[str], Any]) -> Match:
    """Both texts have it, and it is the same."""

    def match(written: str, right: str) -> bool:
        found = look(written)
        return found is not None and found == look(right)

    return match


# ---- where nobody knows the right one ------------------------------------------------------------------------


def distinct_share(ids: Sequence[int], n: int = 4) -> float:
    """Distinct n-grams of all n-grams (distinct-n, arXiv 1510.03055); 1 for a text shorter than that."""
    grams = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 1.0


def check_likelihood(model: ModelConfig, settings: SamplerConfig) -> None:
    """Refuse settings under which one pass cannot ask a token with the text around it.

    Raises:
        InputError: text before a block is read from left to right, and each token is predicted at its own position.
    """
    if _reads_causally(model, settings.visibility or model.visibility) and not model.shift:
        raise InputError(
            "log p a token: this model reads the text before a block from left to right (causal_context), and without "
            "shift predicts none of it; compare by right answers instead (--data with answers)"
        )


def _reads_causally(model: ModelConfig, visibility: str) -> bool:
    return model.causal_context and visibility == "block_causal"


def log_probability(
    model: q.Qwen3LLaDA, result: q.Generation, settings: SamplerConfig, strides: int = 4
) -> Float[np.ndarray, "B L"]:
    """log p of each written token given the others, in nats; NaN elsewhere.

    The pseudo-log-likelihood (arXiv 1910.14659), a stride of it at a time: every `strides`-th token of the answer is
    masked in one pass, so a token sees (strides − 1) / strides of the answer, under the visibility it was written
    under. What the model thinks of its own text, no likelihood: a text that repeats itself does well.

    Of a model with shift that reads the text before a block from left to right, it is the exact likelihood of each
    token given those before it, of one pass over the whole text.

    Raises:
        InputError: as `check_likelihood`.
    """
    check_likelihood(model.config, settings)
    complete = settings.for_model(model.config)
    return np.asarray(_log_probability(model, result._replace(passes=0), complete.structure(model.config), strides))


@functools.partial(jax.jit, static_argnames=("structure", "strides"))
def _log_probability(model: q.Qwen3LLaDA, result: Any, structure: Structure, strides: int) -> Array:
    L = result.tokens.shape[1]
    length = result.prompt_length + result.places.shape[1]
    block = None
    if structure.visibility != "full":
        block = blocks_of(jnp.arange(L)[None], result.prompt_length, structure.block_length, structure.block_origin)
    mask = coordinates_of(model.config, structure, block, length, L)
    written, place = result.written_at >= 0, jnp.arange(L)[None] - result.prompt_length[:, None]
    if _reads_causally(model.config, structure.visibility):
        return jnp.where(written, _asked(model, result.tokens, result.tokens, mask, written, structure), jnp.nan)

    def one(stride: Array) -> Array:
        where = written & (place % strides == stride)
        noisy = jnp.where(where, structure.mask_token_id, result.tokens)
        return _asked(model, noisy, result.tokens, mask, where, structure)

    found = jax.lax.map(one, jnp.arange(strides)).sum(axis=0)
    return jnp.where(written, found, jnp.nan)


def _asked(model: q.Qwen3LLaDA, inputs: Array, tokens: Array, mask: Any, where: Array, structure: Structure) -> Array:
    """[B, L] log p of the tokens `where`, 0 elsewhere."""
    hidden = model.hidden(inputs, mask)
    if structure.shift:
        hidden = q.shift_right(hidden)
    _, ce = q.cross_entropy(hidden, model.head, tokens, jnp.zeros(where.shape), where)
    return jnp.where(where, -ce, 0.0)
