"""What a request may ask of an engine: the settings its program was compiled for, with numbers of the request's own."""

from typing import Any

import jax

from qwen3llada_jax.errors import InputError
from qwen3llada_jax.sampling.config import SamplerConfig
from qwen3llada_jax.sampling.parameters import Parameters
from qwen3llada_jax.sampling.slots import SLOTS


def admitted(config: SamplerConfig, of_engine: SamplerConfig, own: Parameters) -> Parameters:
    """The numbers of a request's complete config, once it is one that an engine's program can write.

    Args:
        own: the engine's numbers.

    Raises:
        InputError: naming the setting that another program would be needed for.
    """
    config.check_rows(1)
    if told := mismatch(config, of_engine, own):
        raise InputError(told)
    return config.parameters(like=of_engine)


def mismatch(config: SamplerConfig, of_engine: SamplerConfig, own: Parameters) -> str | None:
    """The setting of a complete config that another program would be needed for, in a line; None: there is none."""
    if of_engine.stop_at_eos and not config.stop_at_eos and (config.eos == "last" or config.min_length):
        return "stop_at_eos: this engine stops at an EOS that eos 'last' and min_length speak of"
    its = config.parameters(like=of_engine)
    pairs: list[Any] = [(f"{slot} ({what})", getattr(own, slot), getattr(its, slot)) for slot, what in SLOTS.items()]
    for name in ("block_length", "visibility", "cache", "parallel_blocks", "speculate", "mask_token_id"):
        pairs.append((name, getattr(of_engine, name), getattr(config, name)))
    pairs.append(("eos", *(c.eos if c.eos == "last" else "free or never" for c in (of_engine, config))))
    for name in ("cfg_scale", "repetition_penalty", "min_length", "sub_block_length"):
        pairs.append((name, *("off" if getattr(p, name) is None else "on" for p in (own, its))))
    for name, here, there in pairs:
        trees: Any = (jax.tree.structure(here), jax.tree.structure(there))
        if trees[0] != trees[1] if "(" in name else here != there:
            return f"{name}: this engine is made for {here}, the request has {there}; make it another one"
    return None
