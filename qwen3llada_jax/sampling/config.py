"""How to sample: one frozen value, checked where it is made and once more against the model."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int

from qwen3llada_jax import arguments
from qwen3llada_jax.commands import as_typed
from qwen3llada_jax.errors import InputError, shown
from qwen3llada_jax.model.config import VISIBILITIES, ModelConfig
from qwen3llada_jax.model.model import Qwen3LLaDA
from qwen3llada_jax.sampling.rules import CONFIDENCE_RULES, ConfidenceRule

CACHES = ("none", "prefix", "dual")
EOS_RULES = ("free", "never", "last")
REVISE_BY = ("confidence", "random")
ADAPTIVE = ("threshold", "factor", "entropy_bound")
_LEAST_OF = {"gen_length": 1, "block_length": 1, "steps": 1, "top_k": 1, "revise": 0, "min_length": 0}
_REALS = ("temperature", "cfg_scale", "factor", "entropy_bound", "top_p", "threshold", "repetition_penalty")
_NO_CAP = 1 << 30  # steps of a block when nothing limits them
_MOST = 2**31 - 1  # whole numbers are 32 bits wide in a program,
_LEAST = 1e-6  # and logits divided by this, or its inverse, stay finite


@dataclass(frozen=True)
class SamplerConfig:
    """How to sample. Formulas and sources of the rules: `rules.py`.

    Attributes:
        gen_length: tokens to write after the prompt.
        block_length: tokens of a block; None: what the model was trained with, else one block of at most 32.
        steps: forward passes over all blocks together, shared out evenly among them; None: one for each token.
            Under an adaptive rule the most that may be taken; None: as many as it takes.
        temperature: 0 takes the likeliest token; above, one is drawn from softmax(logits / temperature).
        top_k, top_p: draw from the k likeliest, from the smallest set of tokens with probability p.
        cfg_scale: strength w of classifier-free guidance, l_u + (w + 1)(l − l_u); 0: off, half the work.
        repetition_penalty: divides (above 0) or multiplies (below) the logits of ids that stand in the row.
        remasking: who is written first, a name of `rules.CONFIDENCE_RULES` or a function like those.
        threshold, factor, entropy_bound: adaptive number of tokens a pass; at most one. None: an even share.
        revise: tokens of each block that may be masked again after they were written (ReMDM, arXiv 2503.00307).
        revise_by: which: those that were least certain when written, or random ones.
        eos: EOS is a token like others, is `never` written, or is written `last` in a block.
        min_length: no EOS among so many first tokens of the answer.
        stop_at_eos: a row ends at an EOS with nothing masked before it; the rest of it becomes EOS.
        eos_token_ids: None: the model's.
        forbid: more ids that are never written (the mask token and rows no token owns never are).
        visibility: who sees whom (masks.py); None: what the model was trained with.
        cache: keys and values kept between passes: `none`; `prefix`, of prompt and finished blocks; `dual`, of
            what follows the block too. None: `prefix` where it changes no token in float32 (`is_exact`), else `none`.
        parallel_blocks: all blocks in the same passes (needs block_bias); the same tokens, in float32.
        mask_token_id: None: the model's.
    """

    gen_length: int = 128
    block_length: int | None = None
    steps: int | None = None
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    cfg_scale: float = 0.0
    repetition_penalty: float = 1.0
    remasking: str | ConfidenceRule = "low_confidence"
    threshold: float | None = None
    factor: float | None = None
    entropy_bound: float | None = None
    revise: int = 0
    revise_by: str = "confidence"
    eos: str = "free"
    min_length: int = 0
    stop_at_eos: bool = True
    eos_token_ids: tuple[int, ...] | None = None
    forbid: tuple[int, ...] = ()
    visibility: str | None = None
    cache: str | None = None
    parallel_blocks: bool = False
    mask_token_id: int | None = None

    def __post_init__(self) -> None:
        self._take(arguments.whole, *_LEAST_OF, "mask_token_id")
        self._take(arguments.number, *_REALS)
        self._take(arguments.flag, "stop_at_eos", "parallel_blocks")
        self._take(arguments.ids, "eos_token_ids", "forbid")
        for name, least in _LEAST_OF.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"{name} must be at least {least}, not {value}")
            if value is not None and value > _MOST:
                raise InputError(f"{name} must be at most {_MOST}, not {value}")
        for name in ("temperature", "cfg_scale", "factor", "entropy_bound"):
            value = getattr(self, name)
            if value is not None and value != 0 and not _LEAST <= value <= 1 / _LEAST:
                raise InputError(f"{name} must be 0 or more ({_LEAST:g} to {1 / _LEAST:g}), not {value}")
        for name in ("top_p", "threshold"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise InputError(f"{name} must be above 0 and at most 1, not {value}")
        if not _LEAST <= self.repetition_penalty <= 1 / _LEAST:
            raise InputError(
                f"repetition_penalty must be above 0 ({_LEAST:g} to {1 / _LEAST:g}), not {self.repetition_penalty}"
            )
        for name in ("remasking", "revise_by", "eos"):
            if getattr(self, name) is None:
                raise InputError(f"{name} must be named, not None; leave it out for {getattr(type(self), name)!r}")
        if not callable(self.remasking):
            _one_of("remasking", self.remasking, tuple(CONFIDENCE_RULES))
        _one_of("revise_by", self.revise_by, REVISE_BY)
        _one_of("eos", self.eos, EOS_RULES)
        _one_of("visibility", self.visibility, VISIBILITIES)
        _one_of("cache", self.cache, CACHES)
        adaptive = [n for n in ADAPTIVE if getattr(self, n) is not None]
        if len(adaptive) > 1:
            raise InputError(f"{' and '.join(adaptive)} both say how many tokens a pass writes; give one of them")
        for name in ("top_k", "top_p"):
            if getattr(self, name) is not None and self.temperature == 0:
                raise InputError(f"{name} chooses what to draw from; it needs a temperature above 0")

    def _take(self, kind: Callable[[str, Any], Any], *names: str) -> None:
        """Settings as Python's own values; None stays where it may."""
        for name in names:
            value = getattr(self, name)
            if value is not None or getattr(type(self), name) is not None:
                object.__setattr__(self, name, kind(name, value))

    @property
    def adaptive(self) -> str | None:
        """The adaptive rule in force."""
        return next((n for n in ADAPTIVE if getattr(self, n) is not None), None)

    def for_model(self, config: ModelConfig) -> "SamplerConfig":
        """This config with every None filled in from the model (`steps` and the rules apart), and checked.

        Raises:
            InputError: no mask token, ids out of range, or lengths, steps and options that do not fit together.
        """
        mask = config.mask_token_id if self.mask_token_id is None else self.mask_token_id
        if mask is None:
            program = as_typed("converters.from_hf")
            raise InputError(f"the model names no mask token; import it with {program}, or set mask_token_id")
        eos = tuple(config.eos_token_ids) if self.eos_token_ids is None else self.eos_token_ids
        for name, ids in {"mask_token_id": (mask,), "eos_token_ids": eos, "forbid": self.forbid}.items():
            for i in ids:
                if not 0 <= i < config.vocab_size:
                    raise InputError(f"{name} {i} is outside the embedding table (0 … {config.vocab_size - 1})")
        self._check_some_id_is_left(mask, eos, config)
        if not eos and (self.eos != "free" or self.min_length):
            option = f"eos {self.eos!r}" if self.eos != "free" else "min_length"
            raise InputError(f"{option} needs to know the EOS; the model names none, set eos_token_ids")
        block = self.block_length or config.block_length or min(32, self.gen_length)
        if self.gen_length % block:
            raise InputError(
                f"gen_length {self.gen_length} is not a multiple of block_length {block}; "
                f"try {-(-self.gen_length // block) * block}"
            )
        blocks = self.gen_length // block
        if self.steps is not None and self.steps % blocks:
            raise InputError(
                f"steps {self.steps} is not a multiple of the {blocks} blocks (gen_length {self.gen_length} / "
                f"block_length {block}); try {-(-self.steps // blocks) * blocks}"
            )
        if self.top_k is not None and self.top_k > config.vocab_size:
            raise InputError(f"top_k {self.top_k} is more than the vocabulary of {config.vocab_size}")
        visibility = self.visibility or config.visibility
        if self.parallel_blocks and visibility != "block_bias":
            raise InputError(
                f"parallel_blocks needs visibility block_bias (blocks that do not see each other), not {visibility}"
            )
        if self.parallel_blocks and self.repetition_penalty != 1:
            raise InputError(
                "parallel_blocks: blocks written at once cannot know what others repeat; leave out repetition_penalty"
            )
        known = dataclasses.replace(
            self, mask_token_id=mask, eos_token_ids=eos, block_length=block, visibility=visibility
        )
        cache = self.cache or ("prefix" if keeps_prompt(known, config) else "none")
        if cache == "dual" and keeps_prompt(known, config):
            cache = "prefix"  # what follows a block is never seen: nothing else to keep
        return dataclasses.replace(known, cache=cache)

    def _check_some_id_is_left(self, mask: int, eos: tuple[int, ...], config: ModelConfig) -> None:
        """Refuse settings under which no id may be written: id 0 would be."""
        live = config.vocab_size if config.live_vocab_size is None else config.live_vocab_size
        no_eos = self.eos == "never" or self.min_length > 0
        never = {i for i in (mask, *self.forbid, *(eos if no_eos else ())) if i < live}
        if len(never) >= live:
            why = "forbid" + (f" and eos {self.eos!r}" if self.eos == "never" else " and min_length" if no_eos else "")
            raise InputError(f"no id is left to write: {why} leave none of the model's {live} tokens; forbid fewer")

    def outline(self) -> "SamplerConfig":
        """What a compiled program depends on: the numbers that it takes as `Dials` are set to one value each."""

        def same(value: float | None, but: float | None = None) -> Any:
            return value if value == but or value is None else 1

        return dataclasses.replace(
            self,
            steps=None,
            temperature=same(self.temperature, 0),
            top_p=same(self.top_p),
            cfg_scale=same(self.cfg_scale, 0),
            repetition_penalty=1 if self.repetition_penalty == 1 else 2,
            threshold=same(self.threshold),
            factor=same(self.factor),
            entropy_bound=same(self.entropy_bound),
            revise=same(self.revise, 0),
            min_length=same(self.min_length, 0),
        )

    def dials(self) -> "Dials":
        """The numbers of a complete config (`for_model`)."""
        level = getattr(self, self.adaptive) if self.adaptive else 0.0
        floats = (self.temperature, self.top_p or 1.0, self.cfg_scale, self.repetition_penalty, level)
        numbers: list[Any] = [*map(np.float32, floats), *map(np.int32, (self.revise, self.min_length))]
        return Dials(*numbers)

    def passes_of_a_block(self, holes: Sequence[int], blocks: Sequence[int]) -> Int[np.ndarray, " B"]:
        """[B] of rows with so many tokens to write in so many blocks: each row shares `steps` among its blocks.

        Raises:
            InputError: `steps` is not a multiple of some row's blocks.
        """
        assert self.block_length is not None
        if self.steps is None:
            return np.full(len(holes), _NO_CAP if self.adaptive else self.block_length, np.int32)
        odd = next((number for number, many in enumerate(blocks) if self.steps % many), None)
        if odd is not None:
            raise InputError(
                f"steps {self.steps} is not a multiple of the {blocks[odd]} blocks of text {odd + 1} "
                f"({holes[odd]} holes / block_length {self.block_length}); try {math.lcm(*blocks)}"
            )
        return np.array([self.steps // many for many in blocks], np.int32)


class Dials(NamedTuple):
    """The numbers of a `SamplerConfig` that change no program.

    Attributes:
        level: of the adaptive rule.
        revise: tokens of a block that may be masked again.
    """

    temperature: Float[Array, ""]
    top_p: Float[Array, ""]
    cfg_scale: Float[Array, ""]
    repetition_penalty: Float[Array, ""]
    level: Float[Array, ""]
    revise: Int[Array, ""]
    min_length: Int[Array, ""]


def keeps_prompt(config: SamplerConfig, model: ModelConfig) -> bool:
    """Do keys and values of the prompt and of finished blocks never change again?"""
    visibility = config.visibility or model.visibility
    return visibility == "block_causal" or (visibility == "block_bias" and not model.prompt_sees_answer)


def is_exact(config: SamplerConfig, model: ModelConfig | Qwen3LLaDA, dtype: Any = None) -> bool:
    """Does the cache give, token for token, what sampling without one gives?

    Under `block_bias` and `block_causal` it computes the same sums in another order. Float32 rounds them alike but for
    1e-6 or so, which decides only ties that `unmasking.TIE` breaks by place; bfloat16 and float16 round a hundred times
    as coarsely, and now and then another token comes first.

    Args:
        config: whose `cache` None is what `for_model` makes of it.
        model: of a `ModelConfig` alone the compute dtype is not known: give it, or float32 is meant.
        dtype: of the computation, by name or as JAX's or numpy's type; None: the model's.

    Raises:
        InputError: no such dtype.
    """
    if not isinstance(model, ModelConfig):
        dtype, model = model.compute_dtype if dtype is None else dtype, model.config
    keeps = keeps_prompt(config, model)
    is_float32 = dtype is None or arguments.dtype("dtype", dtype) == "float32"
    return config.cache == "none" or (config.cache is None and not keeps) or (keeps and is_float32)


def _one_of(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value is not None and not (isinstance(value, str) and value in choices):
        raise InputError(f"{name} {shown(value)} is unknown; choose one of {', '.join(choices)}")
