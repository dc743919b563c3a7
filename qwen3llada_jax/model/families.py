"""The families of models that can be read and written: what each does in its own way, one record a family.

There is one. A model of another is refused by name, never read as what it is not.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from qwen3llada_jax.errors import InputError, shown


@dataclass(frozen=True)
class Family:
    """A family's files, and the facts of its architecture that no key of its config.json tells.

    Attributes:
        name: as it stands in sentences, and before `Model` and `ForCausalLM` in transformers.
        model_type: that of config.json.
        read: its config.json → the same under the names of `ModelConfig`'s fields, its defaults filled in.
        write: the inverse, for what `ModelConfig.to_hf` gives.
        inert: keys of config.json, beside those of every family, that change nothing in the forward pass.
        rope_theta: what its models have for one.
        names: our weights' names → its tensors', with a `{}` for each stacked axis, in order.
        has_qk_norm: whether every query and key head is normalized.
        biases: projections that have one where `attention_bias` is true.
    """

    name: str
    model_type: str
    read: Callable[[Mapping[str, Any]], dict[str, Any]]
    write: Callable[[Mapping[str, Any]], dict[str, Any]]
    inert: frozenset[str]
    rope_theta: int
    names: Mapping[str, str]
    has_qk_norm: bool
    biases: tuple[str, ...]


def _write_qwen3(values: Mapping[str, Any]) -> dict[str, Any]:
    begin = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_act": "silu"}
    return begin | dict(values) | {"attention_dropout": 0.0, "use_sliding_window": False, "is_causal": False}


QWEN3 = Family(
    name="Qwen3",
    model_type="qwen3",
    read=lambda source: {"tie_word_embeddings": False, "max_position_embeddings": 32_768} | dict(source),
    write=_write_qwen3,
    inert=frozenset({"layer_types", "max_window_layers", "sliding_window", "use_sliding_window"}),
    rope_theta=1_000_000,
    names={
        "embed_tokens": "model.embed_tokens.weight",
        "layers.input_norm": "model.layers.{}.input_layernorm.weight",
        "layers.q_proj": "model.layers.{}.self_attn.q_proj.weight",
        "layers.k_proj": "model.layers.{}.self_attn.k_proj.weight",
        "layers.v_proj": "model.layers.{}.self_attn.v_proj.weight",
        "layers.o_proj": "model.layers.{}.self_attn.o_proj.weight",
        "layers.q_bias": "model.layers.{}.self_attn.q_proj.bias",
        "layers.k_bias": "model.layers.{}.self_attn.k_proj.bias",
        "layers.v_bias": "model.layers.{}.self_attn.v_proj.bias",
        "layers.o_bias": "model.layers.{}.self_attn.o_proj.bias",
        "layers.q_norm": "model.layers.{}.self_attn.q_norm.weight",
        "layers.k_norm": "model.layers.{}.self_attn.k_norm.weight",
        "layers.mlp_norm": "model.layers.{}.post_attention_layernorm.weight",
        "layers.gate_proj": "model.layers.{}.mlp.gate_proj.weight",
        "layers.up_proj": "model.layers.{}.mlp.up_proj.weight",
        "layers.down_proj": "model.layers.{}.mlp.down_proj.weight",
        "norm": "model.norm.weight",
        "lm_head": "lm_head.weight",
    },
    has_qk_norm=True,
    biases=("q", "k", "v", "o"),
)


def family_of(source: Mapping[str, Any]) -> Family:
    """The family of a `config.json`.

    Raises:
        InputError: none that this project knows.
    """
    kind = source.get("model_type")
    if kind == "qwen3_moe" or source.get("num_experts"):
        raise InputError("config: mixture of experts (qwen3_moe) is not supported; use a dense Qwen3")
    if kind != QWEN3.model_type:
        raise InputError(f"config: model_type is {shown(kind)}, not 'qwen3'; only dense Qwen3 models can be imported")
    return QWEN3
