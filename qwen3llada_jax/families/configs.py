"""config.json as families write it: to the names of `ModelConfig`'s fields, and back.

A reader fills in what its family's code takes where a key is absent, so that nothing is left to our own defaults.
"""

from collections.abc import Callable, Mapping
from typing import Any

from qwen3llada_jax.errors import InputError, shown

Reader = Callable[[Mapping[str, Any]], dict[str, Any]]


def reader(**defaults: Any) -> Reader:
    """Read keys that are named as our fields are."""
    return lambda source: defaults | dict(source)


def writer(model_type: str, architecture: str, *without: str, **fixed: Any) -> Reader:
    """Write fields under their own names, but for some, and with some keys that say the same in every file."""

    def write(values: Mapping[str, Any]) -> dict[str, Any]:
        begin = {"architectures": [architecture], "model_type": model_type, "hidden_act": "silu"}
        return begin | {k: v for k, v in values.items() if k not in without} | fixed

    return write


def read_qwen2(source: Mapping[str, Any]) -> dict[str, Any]:
    """Read Qwen2's: biases of queries, keys and values follow from the kind of model alone."""
    begin = {"tie_word_embeddings": False, "max_position_embeddings": 32_768}
    return begin | _with_head_dim(source) | {"attention_bias": True}


def read_llama(source: Mapping[str, Any]) -> dict[str, Any]:
    """Read Llama's.

    Raises:
        InputError: it has biases in the MLP.
    """
    if source.get("mlp_bias"):
        raise InputError("config: mlp_bias is true; biases in the MLP are not supported")
    begin = {"tie_word_embeddings": False, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6}
    return begin | _with_head_dim(source)


def read_dream(source: Mapping[str, Any]) -> dict[str, Any]:
    """Read Dream's: Qwen2's, and rotary positions of one kind.

    Raises:
        InputError: it asks for the positions of images.
    """
    if source.get("use_mrope"):
        raise InputError("config: use_mrope is true; rotary positions of images are not supported")
    return read_qwen2(source)


def with_block_length(read: Reader, key: str) -> Reader:
    """Read a block length that has a name of its own.

    Raises:
        InputError: the file says two.
    """

    def read_both(source: Mapping[str, Any]) -> dict[str, Any]:
        values = read(source)
        theirs, ours = values.pop(key, None), values.get("block_length")
        if None not in (theirs, ours) and theirs != ours:
            raise InputError(f"config: {key} is {shown(theirs)} and block_length {shown(ours)}; leave one of them out")
        return values if theirs is None else values | {"block_length": theirs}

    return read_both


def writes_block_length(write: Reader, key: str) -> Reader:
    """The inverse of `with_block_length`: both names, for its own code and for ours."""
    return lambda values: write(values) | {key: values["block_length"]}


def _with_head_dim(source: Mapping[str, Any]) -> dict[str, Any]:
    """The hidden size over the heads, where the file does not say: of all families but Qwen3 and its descendants."""
    values, heads, hidden = dict(source), source.get("num_attention_heads"), source.get("hidden_size")
    if values.get("head_dim") is None and type(heads) is type(hidden) is int and heads > 0:
        if hidden % heads:
            raise InputError(f"config: hidden_size {hidden} is not a multiple of num_attention_heads {heads}")
        values["head_dim"] = hidden // heads
    return values


# ---- LLaDA, whose code is OLMo's -----------------------------------------------------------------------------------

LLADA_KEYS = {
    "d_model": "hidden_size",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "n_layers": "num_hidden_layers",
    "mlp_hidden_size": "intermediate_size",
    "max_sequence_length": "max_position_embeddings",
    "weight_tying": "tie_word_embeddings",
    "init_std": "initializer_range",
    "embedding_size": "vocab_size",
}
# What that code can do and its published models do not: key → the only value that is read here.
LLADA_ONLY = {
    "block_type": "llama",
    "block_group_size": 1,
    "activation_type": "silu",
    "layer_norm_type": "rms",
    "layer_norm_with_affine": True,
    "bias_for_layer_norm": False,
    "rope": True,
    "rope_full_precision": True,
    "alibi": False,
    "include_bias": False,
    "include_qkv_bias": False,
    "attention_layer_norm": False,
    "input_emb_norm": False,
    "scale_logits": False,
    "multi_query_attention": False,
    "clip_qkv": False,
    "rope_scaling": False,
    "embedding_dropout": 0.0,
    "residual_dropout": 0.0,
}


def read_llada(source: Mapping[str, Any]) -> dict[str, Any]:
    """Read LLaDA's. Of `vocab_size` and `embedding_size` the second counts the rows, where it is there.

    Raises:
        InputError: a part of that code that no published model has, or keys of another family that say otherwise.
    """
    for key, only in LLADA_ONLY.items():
        if source.get(key) is not None and source[key] != only:
            rule = f"only {shown(only)} is" if only else "it is not"
            raise InputError(f"config: {key} is {shown(source[key])}; of a LLaDA {rule} supported")
    for theirs, ours in LLADA_KEYS.items():
        if ours not in ("vocab_size", "initializer_range") and source.get(ours) not in (None, source.get(theirs)):
            raise InputError(
                f"config: {ours} is {shown(source[ours])} and {theirs} {shown(source.get(theirs))}; a LLaDA says "
                f"{theirs}: the keys are of two families"
            )
    if source.get("d_model") and source.get("mlp_hidden_size") is None:
        raise InputError("config.json lacks mlp_hidden_size, which every published LLaDA says")
    rest = {k: v for k, v in source.items() if k not in (*LLADA_KEYS, *LLADA_ONLY)}
    values = rest | {ours: source[theirs] for theirs, ours in LLADA_KEYS.items() if source.get(theirs) is not None}
    return {"tie_word_embeddings": False, "rms_norm_eps": 1e-5} | _with_head_dim(values)


def write_llada(values: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `read_llada`."""
    values = dict(values)
    theirs = {theirs: values.pop(ours) for theirs, ours in LLADA_KEYS.items()}
    for name in ("head_dim", "attention_bias", "rope_parameters", "rope_scaling"):
        values.pop(name)
    only = {k: v for k, v in LLADA_ONLY.items() if k not in ("multi_query_attention", "clip_qkv", "rope_scaling")}
    begin = {"architectures": ["LLaDAModelLM"], "model_type": "llada"}
    return begin | theirs | {"vocab_size": theirs["embedding_size"]} | values | only
