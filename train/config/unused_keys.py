"""Keys that are set and would change nothing, one a line: refused, because whoever set them expects an effect.

A key is refused only where its value differs from the default. Keys that the PyTorch system had are let be, since its
files set all of them at once, but where they contradict another one.
"""

from collections.abc import Callable
from dataclasses import fields
from typing import NamedTuple

from qwen3llada_jax.errors import InputError
from qwen3llada_jax.text.conversations import Columns

from .mix import trains
from .schema import Config, flat


class Inert(NamedTuple):
    """A key, when it has no effect, and that in words ({o} and {t} are the sections `optim` and `training`)."""

    key: str
    when: Callable[[Config], bool]
    why: str
    fix: str = "leave it out"


TABLE = (
    Inert(
        "training.loss_smoothing",
        # 0 says that nothing is to be smoothed, which is what happens.
        lambda c: c.training.loss_impl != "soft_ce" and c.training.loss_smoothing > 0,
        "with training.loss_impl {t.loss_impl}",
        "leave it out, or set loss_impl: soft_ce",
    ),
    Inert(
        "training.place_bias",
        lambda c: not trains(c.training, "block_diffusion"),
        "with training.objective masked, which has no places of a block",
        "leave it out, or set objective: block_diffusion",
    ),
    Inert(
        "training.clean_loss",
        lambda c: not (c.training.objective == "block_diffusion" and c.training.block_attention.causal_context),
        "where no clean text is read from left to right",
        "leave it out, or set objective: block_diffusion and block_attention.causal_context: true",
    ),
    Inert(
        "training.block_attention.causal_context",
        lambda c: c.training.objective == "masked" and bool(c.training.block_attention.causal_context),
        "with training.objective masked",
        "leave it out, or set objective: block_diffusion",
    ),
    Inert(
        "training.causal_annealing",
        lambda c: c.training.objective != "masked",
        "with training.objective {t.objective}",
        "leave it out, or anneal by block_attention.schedule",
    ),
    Inert(
        "training.spike_factor",
        lambda c: c.training.on_spike == "none",
        "with training.on_spike none",
        "leave it out, or set on_spike: stop or skip",
    ),
    Inert("training.eos_padding", lambda c: not c.learns_answers, "on pretraining, which has no answers to pad"),
    Inert(
        "training.block_attention.visibility",
        # As it stands in the training.yaml of a run without blocks.
        lambda c: not c.training.block_attention.enabled and c.training.block_attention.visibility != "block_bias",
        "unless training.block_attention.enabled is true",
        "leave it out, or set enabled: true",
    ),
    Inert(
        "training.block_attention.prompt_sees_answer",
        lambda c: bool(c.training.block_attention.prompt_sees_answer) and not c.training.block_attention.enabled,
        "unless training.block_attention.enabled is true",
        "leave it out, or set enabled: true",
    ),
    Inert(
        "training.block_attention.prompt_sees_answer",
        lambda c: (
            bool(c.training.block_attention.prompt_sees_answer)
            and c.training.block_attention.visibility == "block_causal"
        ),
        "with training.block_attention.visibility block_causal",
        "leave it out, or set visibility: block_bias",
    ),
    Inert(
        "training.block_attention.origin",
        lambda c: c.training.block_attention.enabled is False and c.training.block_attention.origin != "prompt",
        "with training.block_attention.enabled false",
        "leave it out, or set enabled: true",
    ),
    Inert(
        "training.block_attention.origin",
        lambda c: (
            c.training.block_attention.origin != "prompt" and c.training.block_attention.visibility == "block_bias"
        ),
        "with training.block_attention.visibility block_bias, whose prompt is one block",
        "leave it out, or set visibility: block_causal",
    ),
    Inert("optim.betas", lambda c: c.optim.name == "adafactor", "with optim.name {o.name}"),
    Inert("optim.eps", lambda c: c.optim.name in ("adafactor", "lion", "lion8bit"), "with optim.name {o.name}"),
    Inert(
        "optim.moment_dtype",
        lambda c: c.optim.name in ("adafactor", "adamw8bit", "lion8bit"),
        "with optim.name {o.name}",
    ),
    Inert(
        "optim.decay_ratio",
        lambda c: c.optim.scheduler != "wsd",
        "with optim.scheduler {o.scheduler}",
        "leave it out, or set wsd",
    ),
    Inert("optim.min_lr_ratio", lambda c: c.optim.scheduler == "constant", "with optim.scheduler constant"),
    Inert("dataset.num_proc", lambda c: c.dataset.streaming, "on a stream, which is tokenized as it is read"),
    Inert(
        "dataset.shuffle_buffer",
        lambda c: not c.dataset.streaming,
        "without dataset.streaming: all rows are shuffled",
    ),
    Inert(
        "dataset.pack_boundaries",
        lambda c: c.learns_answers,
        "on sft, whose rows hold one conversation each",
    ),
    *(
        Inert(
            f"dataset.{name}",
            lambda c: not c.learns_answers,
            "on pretraining, whose texts are taken as they are",
        )
        for name in ("template", "enable_thinking", "turn_fields", *(f"columns.{f.name}" for f in fields(Columns)))
    ),
    Inert(
        "dataset.enable_thinking",
        lambda c: c.dataset.template == "plain" and bool(c.dataset.enable_thinking),
        "with dataset.template plain",
    ),
    Inert(
        "evaluation.eval_name",
        lambda c: not c.evaluation.do_eval_loss,
        "with evaluation.do_eval_loss false",
        "leave it out (or null)",
    ),
    Inert(
        "distributed.timeout",
        lambda c: c.distributed.initialize == "never",
        "with distributed.initialize never",
    ),
)


def refuse(config: Config) -> None:
    """Refuse what is set in vain.

    Raises:
        InputError: naming the key and why it has no effect.
    """
    values, defaults = flat(config), flat(Config())
    for row in TABLE:
        if values[row.key] != defaults[row.key] and row.when(config):
            why = row.why.format(o=config.optim, t=config.training)
            raise InputError(f"{row.key} has no effect {why}; {row.fix}")
