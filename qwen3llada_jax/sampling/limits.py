"""What fits: positions that a model was trained on, and memory, estimated before anything is allocated."""

import os
from collections.abc import Sequence
from pathlib import Path

import jax

from qwen3llada_jax.errors import InputError
from qwen3llada_jax.model.config import ModelConfig
from qwen3llada_jax.sampling.config import SamplerConfig
from qwen3llada_jax.sampling.passes.memory import bytes_of_a_place


def check_positions(
    model: ModelConfig, given: Sequence[int], to_write: int, what: str = "row", whole_blocks: int = 1
) -> None:
    """Refuse rows that go on beyond the positions the model was made for, where it writes nonsense.

    A model with a rope_scaling is made to go on; `beyond` tells of it.

    Args:
        given: tokens of each row before what is written.
        what: a row is called in the message.
        whole_blocks: rows end at a multiple of so many tokens.

    Raises:
        InputError: naming the first such row.
    """
    most = model.max_position_embeddings
    if model.rope_scaling is not None:
        return
    ends = [-(-(length + to_write) // whole_blocks) * whole_blocks for length in given]
    long = [number for number, end in enumerate(ends, 1) if end > most]
    if long:
        length = given[long[0] - 1]
        others = f" (and {len(long) - 1} more)" if len(long) > 1 else ""
        written = f" and {to_write:,} to write" if to_write else ""
        written += f" in whole blocks of {whole_blocks}" if whole_blocks > 1 else ""
        raise InputError(
            f"{what} {long[0]}{others}: {length:,} tokens{written} are beyond the {most:,} positions the model was "
            "made for; shorten it, lower gen_length, or give config.json a rope_scaling"
        )


def beyond(model: ModelConfig, given: Sequence[int], to_write: int) -> int:
    """Rows that only a stretched rotary embedding reaches the end of."""
    return sum(length + to_write > model.max_position_embeddings for length in given)


def most_tokens(model: ModelConfig) -> int:
    """No row can be longer: by the model's positions, or by memory where these are stretched."""
    if model.rope_scaling is None:
        return model.max_position_embeddings
    return max(model.max_position_embeddings, memory() // (2 * (model.hidden_size + 2 * model.intermediate_size)))


def check_memory(model: ModelConfig, rows: int, length: int, config: SamplerConfig) -> None:
    """Refuse what cannot fit into memory.

    Args:
        rows, length: of the canvas.
        config: complete (`for_model`).

    Raises:
        InputError: naming the sizes.
    """
    need, have = least_memory(model, rows, length, config), memory()
    if need > have:
        raise InputError(
            f"{rows:,} rows of {length:,} tokens need more than {need / 1e9:,.0f} GB to write, and there are "
            f"{have / 1e9:,.0f}; write fewer rows at once, or less (gen_length)"
        )


def least_memory(model: ModelConfig, rows: int, length: int, config: SamplerConfig, bytes_each: int = 2) -> int:
    """Bytes that the sampler needs at the very least, beside the weights; arguments as for `check_memory`.

    Args:
        bytes_each: of a number in the model's compute dtype.
    """
    at_once = rows * (2 if config.cfg_scale > 0 else 1)
    need = rows * length * 20  # the canvas
    if config.cache == "none":
        layer = model.hidden_size + 2 * model.intermediate_size
        scores = model.num_attention_heads * length if jax.default_backend() == "cpu" else 0
        need += at_once * length * (layer * bytes_each + scores * 4)
    else:
        width = 2 * model.num_hidden_layers * model.num_key_value_heads * model.head_dim
        need += at_once * length * width * bytes_each
    places = config.gen_length if config.parallel_blocks else config.block_length or 0
    # Of the passes before, and new.
    return need + 2 * rows * places * bytes_of_a_place(config.parameters(), model.vocab_size)


def memory() -> int:
    """Bytes of memory of all devices together; on CPUs the machine's, or this container's."""
    if jax.default_backend() == "cpu":
        have = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        limit = Path("/sys/fs/cgroup/memory.max")
        text = limit.read_text(encoding="ascii").strip() if limit.is_file() else "max"
        return min(have, int(text)) if text.isdigit() else have
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    limits = [s["bytes_limit"] for s in stats if "bytes_limit" in s]
    return sum(limits) * jax.process_count() if limits else 1 << 62  # it does not say
