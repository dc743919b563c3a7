"""How to sample: one frozen value, checked where it is made and once more against the model."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int

from qwen3llada_jax.commands import as_typed
from qwen3llada_jax.errors import InputError
from qwen3llada_jax.model.config import VISIBILITIES, ModelConfig
from qwen3llada_jax.sampling import drafting, named_rules, rules, slots
from qwen3llada_jax.sampling.parameters import Parameters, Structure
from qwen3llada_jax.sampling.setting import Setting, field, setting_of
from qwen3llada_jax.sampling.slots import ConfidenceRule, Rule

OF_A_DRAW = ("top_k", "top_p", "anneal_to")  # settings that need a temperature
_NO_CAP = 1 << 30  # steps of a block when nothing limits them


def _of(kind: Any, name: str, default: Any = None) -> Any:
    """A short name for a rule's field of that name: what values it takes is said there."""
    declared = next(setting_of(f) for f in dataclasses.fields(kind) if f.name == name)
    return field(dataclasses.replace(declared, slot=slots.slot_of(kind)), default)


@dataclass(frozen=True)
class SamplerConfig:
    """How to sample. Formulas and sources of the rules: `rules/`.

    Every rule has short names here (`threshold=0.9`); or it is given as such (`commit=Threshold(0.9)`), with numbers
    for all rows or one for each, and from a user's own class or function too.

    Attributes:
        gen_length: tokens to write after the prompt. A multiple of the block length, unless blocks are counted from
            position 0.
        block_length: tokens of a block; None: what the model was trained with, else one block of at most 32.
        steps: forward passes over all blocks together, shared out evenly among them; None: one for each token. A block
            more, where blocks are counted from position 0 and the prompt ends within one, takes as many more.
            Under an adaptive rule the most that may be taken; None: as many as it takes.
        temperature: 0 takes the likeliest token; above, one is drawn from softmax(logits / temperature).
        anneal_to: what the temperature falls to over a block's passes.
        top_k, top_p: draw from the k likeliest, from the smallest set of tokens with probability p.
        sub_block_length: a block is written in parts of so many places, from left to right; of a model with shift its
            first token alone before them, by the clean block before it (Fast-dLLM v2, arXiv 2509.26328).
        cfg_scale: strength w of classifier-free guidance, l_u + (w + 1)(l − l_u); 0: off, half the work.
        repetition_penalty: divides (above 0) or multiplies (below) the logits of ids that stand in the row.
        remasking: who is written first, a name of `rules.CONFIDENCE_RULES` or a function like those.
        threshold, factor, entropy_bound, dynamic, timesteps, local_leap, klass, less, wide_in: how many tokens a pass
            writes, or which; at most one. None: an even share.
        finish_below: a block is written whole once it is stable and its mean entropy is below this.
        revise: tokens of each block that may be masked again after they were written (ReMDM, arXiv 2503.00307).
        revise_by: which: those that were least certain when written, or random ones.
        narrow_out: written tokens that a later pass finds less likely than this are masked again; `revise` of a block
            at most, if that is given.
        edit_above: a written token is replaced where another one is surer than this.
        eos: EOS is a token like others, is `never` written, or is written `last` in a block.
        min_length: no EOS among so many first tokens of the answer.
        stop_at_eos: a row ends at an EOS with nothing masked before it; the rest of it becomes EOS.
        eos_token_ids: None: the model's.
        forbid: more ids that are never written (the mask token and rows no token owns never are).
        visibility: who sees whom (masks.py); None: what the model was trained with.
        cache: keys and values kept between passes: `none`; `prefix`, of prompt and finished blocks; `dual`, of
            what follows the block too. None: `prefix` where it changes no token in float32 (`is_exact`), else `none`.
        parallel_blocks: all blocks in the same passes (needs block_bias, and no shift); the same tokens, in float32.
        speculate: draft a block by diffusion and verify it from left to right: the autoregressive text in fewer passes
            (passes/speculation.py); `block_length` is the draft's.
        mask_token_id: None: the model's.
        order, commit, draw, remask, stop, finish, edit: rules (slots.py); None: what the short names say.
    """

    gen_length: int = field(Setting("whole", "tokens to write (default: 128)", least=1), 128)
    block_length: int | None = field(Setting("whole", "tokens of a block (default: the model's, or 32)", least=1), None)
    steps: int | None = field(
        Setting(
            "whole",
            "forward passes over all blocks (default: one for each token; under an adaptive rule, no limit)",
            least=1,
        ),
        None,
    )
    sub_block_length: int | None = field(
        Setting("whole", "write a block in parts of so many places, left to right (default: the whole block)", least=1),
        None,
    )
    temperature: float = _of(rules.Sample, "temperature", 0.0)
    top_k: int | None = _of(rules.Sample, "top_k")
    top_p: float | None = _of(rules.Sample, "top_p")
    anneal_to: float | None = _of(rules.Annealed, "anneal_to")
    cfg_scale: float = field(Setting("number", "classifier-free guidance; 0: off (default: 0)", range="0 or more"), 0.0)
    repetition_penalty: float = field(
        Setting("number", "above 1: ids that stand in the text become less likely (default: 1)", range="above 0"), 1.0
    )
    remasking: str | ConfidenceRule = field(  # noqa: RUF009
        Setting(tuple(rules.CONFIDENCE_RULES), "who is written first (default: low_confidence)", slot="order"),
        "low_confidence",
    )
    threshold: float | None = _of(rules.Threshold, "threshold")
    factor: float | None = _of(rules.Factor, "factor")
    entropy_bound: float | None = _of(rules.EntropyBound, "entropy_bound")
    dynamic: float | None = _of(rules.Dynamic, "dynamic")
    timesteps: float | None = _of(rules.Timesteps, "timesteps")
    local_leap: float | None = _of(rules.LocalLeap, "local_leap")
    klass: float | None = _of(rules.KLASS, "klass")
    less: float | None = _of(rules.LESS, "less")
    wide_in: float | None = _of(rules.WideIn, "wide_in")
    finish_below: float | None = _of(rules.StableAndConfident, "finish_below")
    revise: int = _of(rules.LeastCertain, "revise", 0)
    revise_by: str = field(
        Setting(
            tuple(rules.REMASK_RULES),
            "which: the least certain when written, or random ones (default: confidence)",
            slot="remask",
        ),
        "confidence",
    )
    narrow_out: float | None = _of(rules.NarrowOut, "narrow_out")
    edit_above: float | None = _of(rules.Surer, "edit_above")
    eos: str = field(
        Setting(("free", "never", "last"), "EOS: as any token, never, or last in a block (default: free)"), "free"
    )
    min_length: int = field(Setting("whole", "no EOS among the first so many tokens (default: 0)", least=0), 0)
    stop_at_eos: bool = field(
        Setting("flag", "a text ends at an EOS with nothing masked before it (default: on)", slot="stop"), True
    )
    eos_token_ids: tuple[int, ...] | None = field(
        Setting("ids", "ids that end a text, as 7,12 (default: the model's, the tokenizer's, <|im_end|>)"), None
    )
    forbid: tuple[int, ...] = field(Setting("ids", "ids that are never written, as 7,12"), ())
    visibility: str | None = field(
        Setting(VISIBILITIES, "who sees whom (default: what the model was trained with)"), None
    )
    cache: str | None = field(
        Setting(
            ("none", "prefix", "dual"),
            "keys and values kept between passes: exact in float32 under block_bias and block_causal; under "
            "full both approximate, and the program says so (default: prefix under the former two, else none)",
        ),
        None,
    )
    parallel_blocks: bool = field(
        Setting("flag", "all blocks in the same passes; exact in float32; needs block_bias (default: off)"), False
    )
    speculate: bool = field(
        Setting(
            "flag",
            "draft blocks, verify them from left to right: the autoregressive text in fewer passes; needs shift and "
            "causal_context, or an autoregressive model (default: off)",
        ),
        False,
    )
    mask_token_id: int | None = field(Setting("whole", "(default: the model's)"), None)
    order: Rule | None = None
    commit: Rule | None = None
    draw: Rule | None = None
    remask: Rule | None = None
    stop: Rule | None = None
    finish: Rule | None = None
    edit: Rule | None = None

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            setting, value = setting_of(f), getattr(self, f.name)
            if f.name == "remasking" and slots.slot_of(value) and not isinstance(value, type):
                raise InputError(f"remasking is a name or a function; give the rule as order={value}")
            if f.name == "remasking" and callable(value):
                slots.checked("order", value)
            elif setting:
                object.__setattr__(self, f.name, setting.taken(f.name, value, f.default))
            elif value is not None:
                object.__setattr__(self, f.name, slots.checked(f.name, value))
        self._check_given_once()
        if self.speculate:
            drafting.check_settings(self)
        for name in OF_A_DRAW:
            if getattr(self, name) is not None and self.temperature == 0:
                does = "is what it falls to" if name == "anneal_to" else "chooses what to draw from"
                raise InputError(f"{name} {does}; it needs a temperature above 0")

    def _check_given_once(self) -> None:
        """Refuse two ways to say one rule."""
        for slot, what in slots.SLOTS.items():
            given = [name for name, setting in SETTINGS.items() if setting.slot == slot and self._is_given(name)]
            if getattr(self, slot) is not None:
                given = [slot, *given][:2]
            if slot == "remask" and {"revise_by", "narrow_out"} <= {*given}:
                given = ["revise_by", "narrow_out"]
            if len(given) > 1 and given[0] in (slot, "revise_by", *rules.COMMIT_RULES):
                raise InputError(f"{' and '.join(given)} both say {what}; give one of them")

    def _is_given(self, name: str) -> bool:
        return getattr(self, name) != getattr(type(self), name)

    @property
    def has_budget(self) -> bool:
        """Whether `steps` are shared out; of an adaptive rule they are the most that may be taken."""
        return not self.speculate and slots.has_budget(named_rules.commit_of(self))

    def parameters(self, like: "SamplerConfig | None" = None) -> Parameters:
        """The rules and numbers of a complete config (`for_model`).

        Args:
            like: what is in force there is in force here, without effect if it is off: so that one program serves both.
        """
        likes = (self,) if like is None else (self, like)
        chosen = named_rules.of(self, likes, is_an_engine=like is not None)
        numbers = {
            "cfg_scale": np.float32(self.cfg_scale) if self.cfg_scale else None,
            "repetition_penalty": (
                np.float32(self.repetition_penalty) if any(c.repetition_penalty != 1 for c in likes) else None
            ),
            "min_length": np.int32(self.min_length) if any(c.min_length for c in likes) else None,
            "sub_block_length": np.int32(self.sub_block_length) if self.sub_block_length else None,
        }
        typed = {slot: None if rule is None else slots.numbers_of(rule) for slot, rule in chosen.items()}
        values: Any = typed | numbers
        return Parameters(**values)

    def structure(self, model: ModelConfig) -> Structure:
        """What of a complete config a program is compiled for, its rules apart."""
        assert self.block_length is not None
        assert self.visibility is not None
        assert self.cache is not None
        assert self.mask_token_id is not None
        return Structure(
            self.block_length,
            self.visibility,
            self.cache,
            self.parallel_blocks,
            is_eos_last=self.eos == "last",
            cfg_branches=2 if self.cfg_scale else 1,
            mask_token_id=self.mask_token_id,
            shift=model.shift,
            block_origin=origin_of(self, model),
            speculate=self.speculate,
        )

    def for_model(self, config: ModelConfig) -> "SamplerConfig":
        """This config with every None filled in from the model (`steps` and the rules apart), and checked.

        Raises:
            InputError: no mask token, ids out of range, or lengths, steps and options that do not fit together.
        """
        mask = config.mask_token_id if self.mask_token_id is None else self.mask_token_id
        if mask is None and self._sees_no_mask(config):
            mask = config.live_vocab_size  # any id will do that no token has
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
        visibility = self.visibility or config.visibility
        origin = origin_of(self, config)
        if self.speculate:
            drafting.check_model(config, block, visibility)
        elif self.gen_length % block and origin != "start":
            raise InputError(
                f"gen_length {self.gen_length} is not a multiple of block_length {block}; "
                f"try {-(-self.gen_length // block) * block}"
            )
        if self.sub_block_length is not None and self.sub_block_length > block:
            raise InputError(f"sub_block_length {self.sub_block_length} is more than block_length {block}; lower it")
        blocks = -(-self.gen_length // block)
        if self.steps is not None and self.steps % blocks:
            raise InputError(
                f"steps {self.steps} is not a multiple of the {blocks} blocks (gen_length {self.gen_length} / "
                f"block_length {block}); try {-(-self.steps // blocks) * blocks}"
            )
        top_k = self.top_k if self.draw is None else getattr(self.draw, "top_k", None)
        if top_k is not None and top_k > config.vocab_size:
            raise InputError(f"top_k {top_k} is more than the vocabulary of {config.vocab_size}")
        if self.parallel_blocks and visibility != "block_bias":
            raise InputError(
                f"parallel_blocks needs visibility block_bias (blocks that do not see each other), not {visibility}"
            )
        if self.parallel_blocks and config.shift:
            raise InputError(
                "parallel_blocks: this model predicts a block's first token at the end of the block before, which must "
                "be written by then; leave it out"
            )
        if self.parallel_blocks and self.repetition_penalty != 1:
            raise InputError(
                "parallel_blocks: blocks written at once cannot know what others repeat; leave out repetition_penalty"
            )
        if self.parallel_blocks and (self.edit or self.edit_above):
            raise InputError(
                "parallel_blocks: blocks written at once cannot end their edits one by one; leave out edit_above"
            )
        known = dataclasses.replace(
            self, mask_token_id=mask, eos_token_ids=eos, block_length=block, visibility=visibility
        )
        cache = self.cache or ("prefix" if prefix_cache_is_exact(known, config) else "none")
        if cache == "dual" and prefix_cache_is_exact(known, config):
            cache = "prefix"  # what follows a block is never seen: nothing else to keep
        return dataclasses.replace(known, cache=cache)

    def _sees_no_mask(self, config: ModelConfig) -> bool:
        """Whether the model writes a token at a time from those before it, and there is an id that no token has."""
        is_as_trained = self.block_length in (None, 1) and self.visibility in (None, "block_causal")
        live = config.live_vocab_size
        return config.is_autoregressive and is_as_trained and live is not None and live < config.vocab_size

    def _check_some_id_is_left(self, mask: int, eos: tuple[int, ...], config: ModelConfig) -> None:
        """Refuse settings under which no id may be written: id 0 would be."""
        live = config.vocab_size if config.live_vocab_size is None else config.live_vocab_size
        no_eos = self.eos == "never" or self.min_length > 0
        never = {i for i in (mask, *self.forbid, *(eos if no_eos else ())) if i < live}
        if len(never) >= live:
            why = "forbid" + (f" and eos {self.eos!r}" if self.eos == "never" else " and min_length" if no_eos else "")
            raise InputError(f"no id is left to write: {why} leave none of the model's {live} tokens; forbid fewer")

    def check_rows(self, rows: int) -> None:
        """Refuse rules that have a number for each row, and not for so many rows.

        Raises:
            InputError: naming the number.
        """
        for rule in filter(None, (getattr(self, slot) for slot in slots.SLOTS)):
            for name, value in slots.numbers_in(rule).items():
                if np.ndim(value) and len(value) != rows:
                    raise InputError(f"{name} has {len(value)} numbers, and there are {rows} rows; give one, or {rows}")

    def passes_of_a_block(self, holes: Sequence[int], blocks: Sequence[int]) -> Int[np.ndarray, " B"]:
        """[B] of rows with so many tokens to write in so many blocks: each row shares `steps` among its blocks.

        Raises:
            InputError: `steps` is not a multiple of some row's blocks.
        """
        assert self.block_length is not None
        if self.steps is None:
            return np.full(len(holes), self.block_length if self.has_budget else _NO_CAP, np.int32)
        odd = next((number for number, many in enumerate(blocks) if self.steps % many), None)
        if odd is not None:
            raise InputError(
                f"steps {self.steps} is not a multiple of the {blocks[odd]} blocks of text {odd + 1} "
                f"({holes[odd]} holes / block_length {self.block_length}); try {math.lcm(*blocks)}"
            )
        return np.array([self.steps // many for many in blocks], np.int32)


SETTINGS: dict[str, Setting] = {f.name: s for f in dataclasses.fields(SamplerConfig) if (s := setting_of(f))}


def origin_of(config: SamplerConfig, model: ModelConfig) -> str:
    """Where blocks are counted from: as the model was trained, if it is asked to see as it was trained.

    Text that is verified token by token has no blocks to fill up.
    """
    if config.speculate:
        return "prompt"
    visibility = config.visibility or model.visibility
    return model.block_origin if visibility == model.visibility == "block_causal" else "prompt"


def whole_blocks(config: SamplerConfig, model: ModelConfig) -> int:
    """Rows end at a multiple of so many tokens (config complete): where blocks are counted from position 0, a model's
    tokens were trained to see all of their last one."""
    if origin_of(config, model) != "start":
        return 1
    assert config.block_length is not None
    return config.block_length


def prefix_cache_is_exact(config: SamplerConfig | Structure, model: ModelConfig) -> bool:
    """Do keys and values of the prompt and of finished blocks never change again?"""
    visibility = config.visibility or model.visibility
    return visibility == "block_causal" or (visibility == "block_bias" and not model.prompt_sees_answer)
