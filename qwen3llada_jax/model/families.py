"""The families of checkpoints that can be read and written: what each does in its own way, one record a family.

Their parts are the same (RMSNorm, rotary positions, grouped queries, SwiGLU). They differ in four facts of the
architecture (norms of queries and keys, biases, shift, where blocks are counted from), in names, and in what they were
trained with:

| family                     | model_type                | norms | biases  | shift | sees                          |
|----------------------------|---------------------------|-------|---------|-------|-------------------------------|
| Qwen3                      | qwen3                     | yes   | by key  | yes   | causally, until it is adapted |
| Qwen2, Qwen2.5             | qwen2                     | no    | q, k, v | yes   | causally                      |
| Llama 3, SmolLM2           | llama                     | no    | by key  | yes   | causally                      |
| PyTorch reference system   | qwen3llada                | yes   | by key  | no    | everything                    |
| SDAR                       | sdar                      | yes   | by key  | no    | blocks of 4, from position 0  |
| A2D (dllm), mdlm           | a2d-qwen3, -qwen2, -llama | as their bases  | no    | everything                    |
| A2D (dllm), bd3lm          | the same                  | as their bases  | no    | blocks of 32, prompts aligned |
| LLaDA, LLaDA 1.5, iLLaDA   | llada                     | no    | none    | no    | everything                    |
| Dream, DiffuCoder          | Dream                     | no    | q, k, v | yes   | everything                    |
| Fast-dLLM v2               | Fast_dLLM_Qwen            | no    | q, k, v | yes   | blocks of 32, from position 0 |

A model of another family is refused by name, never read as what it is not.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from qwen3llada_jax.errors import InputError, listed, shown

AUTOREGRESSIVE = {"visibility": "block_causal", "block_length": 1, "shift": True, "block_origin": "start"}
FULL = {"visibility": "full", "shift": False}


@dataclass(frozen=True)
class Family:
    """A family's files, and the facts of its architecture that no key of its config.json tells.

    Attributes:
        name: as it stands in sentences.
        model_type: that of config.json.
        architectures: what its config.json may name beside it; the first is written.
        names: our weights' names → its tensors', with a `{}` for each stacked axis, in order.
        read: its config.json → the same under the names of `ModelConfig`'s fields, its defaults filled in.
        write: the inverse, for what `ModelConfig.to_hf` gives.
        inert: keys of config.json, beside those of every family, that change nothing in the forward pass.
        rope_theta: what its models have for one.
        has_qk_norm: whether every query and key head is normalized.
        biases: projections that have one where `attention_bias` is true.
        has_own_biases: whether `attention_bias` is no key of its config.json: all of its models have them, or none.
        own: what its checkpoints were trained with, where config.json does not say: fields of `ModelConfig`.
        may_untie: whether the head may be another than the embedding though config.json calls it tied.
        sampling: how its models are sampled, as `SamplerConfig` has it; generation_config.json says more and wins.
            None: that file is of the autoregressive model that they are, or were made from, and counts for that alone.
    """

    name: str
    model_type: str
    architectures: tuple[str, ...]
    names: Mapping[str, str]
    read: Callable[[Mapping[str, Any]], dict[str, Any]]
    write: Callable[[Mapping[str, Any]], dict[str, Any]]
    inert: frozenset[str] = frozenset()
    rope_theta: int = 1_000_000
    has_qk_norm: bool = False
    biases: tuple[str, ...] = ()
    has_own_biases: bool = False
    own: Mapping[str, Any] = field(default_factory=lambda: FULL)
    may_untie: bool = False
    sampling: Mapping[str, Any] | None = None


# ---- names --------------------------------------------------------------------------------------------------------

_QWEN = {
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
}

_LLADA = {
    "embed_tokens": "model.transformer.wte.weight",
    "layers.input_norm": "model.transformer.blocks.{}.attn_norm.weight",
    "layers.q_proj": "model.transformer.blocks.{}.q_proj.weight",
    "layers.k_proj": "model.transformer.blocks.{}.k_proj.weight",
    "layers.v_proj": "model.transformer.blocks.{}.v_proj.weight",
    "layers.o_proj": "model.transformer.blocks.{}.attn_out.weight",
    "layers.mlp_norm": "model.transformer.blocks.{}.ff_norm.weight",
    "layers.gate_proj": "model.transformer.blocks.{}.ff_proj.weight",
    "layers.up_proj": "model.transformer.blocks.{}.up_proj.weight",
    "layers.down_proj": "model.transformer.blocks.{}.ff_out.weight",
    "norm": "model.transformer.ln_f.weight",
    "lm_head": "model.transformer.ff_out.weight",
}

# ---- config.json --------------------------------------------------------------------------------------------------


def _reader(**defaults: Any) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    return lambda source: defaults | dict(source)


def _write_qwen3(values: Mapping[str, Any]) -> dict[str, Any]:
    begin = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_act": "silu"}
    return begin | dict(values) | {"attention_dropout": 0.0, "use_sliding_window": False, "is_causal": False}


def _writer(model_type: str, architecture: str, *without: str, **fixed: Any) -> Callable[..., dict[str, Any]]:
    def write(values: Mapping[str, Any]) -> dict[str, Any]:
        begin = {"architectures": [architecture], "model_type": model_type, "hidden_act": "silu"}
        return begin | {k: v for k, v in values.items() if k not in without} | fixed

    return write


def _with_biases(source: Mapping[str, Any]) -> dict[str, Any]:
    """Qwen2's: biases of queries, keys and values follow from the kind of model alone."""
    begin = {"tie_word_embeddings": False, "max_position_embeddings": 32_768}
    return begin | _with_head_dim(source) | {"attention_bias": True}


def _with_head_dim(source: Mapping[str, Any]) -> dict[str, Any]:
    """The hidden size over the heads, where the file does not say: of all families but Qwen3."""
    values, heads, hidden = dict(source), source.get("num_attention_heads"), source.get("hidden_size")
    if values.get("head_dim") is None and type(heads) is type(hidden) is int and heads > 0:
        if hidden % heads:
            raise InputError(f"config: hidden_size {hidden} is not a multiple of num_attention_heads {heads}")
        values["head_dim"] = hidden // heads
    return values


def _read_llama(source: Mapping[str, Any]) -> dict[str, Any]:
    if source.get("mlp_bias"):
        raise InputError("config: mlp_bias is true; biases in the MLP are not supported")
    return {"tie_word_embeddings": False, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6} | _with_head_dim(
        source
    )


_OF_LLADA = {
    "d_model": "hidden_size",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "n_layers": "num_hidden_layers",
    "mlp_hidden_size": "intermediate_size",
    "embedding_size": "vocab_size",
    "max_sequence_length": "max_position_embeddings",
    "weight_tying": "tie_word_embeddings",
}
# What LLaDA's code can do and its published models do not: (key, the only value that is read here).
_LLADA_ONLY = {
    "block_type": "llama",
    "activation_type": "silu",
    "layer_norm_type": "rms",
    "rope": True,
    "rope_full_precision": True,
    "alibi": False,
    "include_bias": False,
    "include_qkv_bias": False,
    "attention_layer_norm": False,
    "input_emb_norm": False,
    "scale_logits": False,
    "multi_query_attention": None,
    "clip_qkv": None,
}


def _read_llada(source: Mapping[str, Any]) -> dict[str, Any]:
    for key, only in _LLADA_ONLY.items():
        if source.get(key, only) != only and not (only is None and source[key] is False):
            raise InputError(
                f"config: {key} is {shown(source[key])}; of LLaDA's models only {shown(only)} is supported"
            )
    rest = {k: v for k, v in source.items() if k not in (*_OF_LLADA, *_LLADA_ONLY)}
    values = rest | {ours: source[theirs] for theirs, ours in _OF_LLADA.items() if source.get(theirs) is not None}
    if "embedding_size" not in source and "vocab_size" in source:
        values["vocab_size"] = source["vocab_size"]
    return {"tie_word_embeddings": False, "rms_norm_eps": 1e-5} | _with_head_dim(values)


def _write_llada(values: Mapping[str, Any]) -> dict[str, Any]:
    values = dict(values)
    theirs = {theirs: values.pop(ours) for theirs, ours in _OF_LLADA.items()}
    for name in ("head_dim", "attention_bias", "rope_parameters", "rope_scaling"):
        values.pop(name, None)
    begin = {"architectures": ["LLaDAModelLM"], "model_type": "llada"}
    only = {k: v for k, v in _LLADA_ONLY.items() if v is not None}
    return begin | theirs | {"vocab_size": theirs["embedding_size"]} | values | only


def _read_blocks(key: str, default: int) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """A reader of families whose block length has a name of its own, or is part of the model's (`-b16`)."""

    def read(source: Mapping[str, Any]) -> dict[str, Any]:
        named = re.search(r"-b(\d{1,4})(?![0-9A-Za-z])", str(source.get("_name_or_path", "")))
        length = source.get(key) or (int(named[1]) if named else default)
        rest = {k: v for k, v in source.items() if k != key}
        return {"tie_word_embeddings": False, "max_position_embeddings": 32_768, "block_length": length} | rest

    return read


def _read_fast_dllm(source: Mapping[str, Any]) -> dict[str, Any]:
    return _with_biases(_read_blocks("bd_size", 32)(source))


# dllm publishes two kinds of A2D under one model_type; only their names tell them apart.
_A2D_KINDS = {
    "mdlm": FULL,
    "bd3lm": {"visibility": "block_causal", "block_length": 32, "shift": False, "block_origin": "aligned"},
}


def _a2d(base: "Family", **own: Any) -> "Family":
    def read(source: Mapping[str, Any]) -> dict[str, Any]:
        values = base.read(source)
        if "visibility" not in values:
            name = str(source.get("_name_or_path", "")).lower()
            kinds = [kind for kind in _A2D_KINDS if kind in name]
            if len(kinds) != 1:
                raise InputError(
                    "config: an A2D model is an mdlm (sees everything) or a bd3lm (blocks), and its name says neither; "
                    "say --visibility full, or --visibility block_causal --block-length 32"
                )
            values = _A2D_KINDS[kinds[0]] | values
        return values

    model_type = f"a2d-{base.model_type}"
    architecture = f"A2D{base.name}LMHeadModel"
    without = ("attention_bias",) if base.has_own_biases else ()
    return replace(
        base,
        name=f"A2D {base.name}",
        model_type=model_type,
        architectures=(architecture,),
        read=read,
        write=_writer(model_type, architecture, *without),
        own=FULL,
        may_untie=True,
        **own,
    )


# ---- the families -------------------------------------------------------------------------------------------------

_QWEN_INERT = frozenset({"layer_types", "max_window_layers", "sliding_window", "use_sliding_window"})

QWEN3 = Family(
    name="Qwen3",
    model_type="qwen3",
    architectures=("Qwen3ForCausalLM", "Qwen3Model"),
    names=_QWEN,
    read=_reader(tie_word_embeddings=False, max_position_embeddings=32_768),
    write=_write_qwen3,
    inert=_QWEN_INERT,
    has_qk_norm=True,
    biases=("q", "k", "v", "o"),
    own=AUTOREGRESSIVE,
)

QWEN2 = Family(
    name="Qwen2",
    model_type="qwen2",
    architectures=("Qwen2ForCausalLM", "Qwen2Model"),
    names=_QWEN,
    read=_with_biases,
    write=_writer("qwen2", "Qwen2ForCausalLM", "attention_bias", attention_dropout=0.0, is_causal=False),
    inert=_QWEN_INERT,
    biases=("q", "k", "v"),
    has_own_biases=True,
    own=AUTOREGRESSIVE,
)

LLAMA = Family(
    name="Llama",
    model_type="llama",
    architectures=("LlamaForCausalLM", "LlamaModel"),
    names=_QWEN,
    read=_read_llama,
    write=_writer("llama", "LlamaForCausalLM", attention_dropout=0.0, mlp_bias=False, is_causal=False),
    inert=frozenset({"mlp_bias", "pretraining_tp", "is_llama_config", "rope_interleaved"}),
    rope_theta=500_000,
    biases=("q", "k", "v", "o"),
    own=AUTOREGRESSIVE,
)

QWEN3LLADA = replace(
    QWEN3,
    name="Qwen3LLaDA (PyTorch)",
    model_type="qwen3llada",
    architectures=("Qwen3LLadaForMaskedLM",),
    names={ours: re.sub(r"^model\.", "backbone.backbone.", theirs) for ours, theirs in _QWEN.items()},
    read=_reader(tie_word_embeddings=False, max_position_embeddings=32_768, mask_token_id=126_336),
    write=_writer("qwen3llada", "Qwen3LLadaForMaskedLM"),
    own=FULL,
    may_untie=True,
)

SDAR = replace(
    QWEN3,
    name="SDAR",
    model_type="sdar",
    architectures=("SDARForCausalLM",),
    read=_read_blocks("block_size", 4),
    write=_writer("sdar", "SDARForCausalLM"),
    inert=_QWEN_INERT
    | {"auto_map", "debug", "ep_size", "fuse_cross_entropy", "micro_forward", "skip_checkpoint", "use_deepep"},
    sampling={},
    own={"visibility": "block_causal", "shift": False, "block_origin": "start"},
)

LLADA = Family(
    name="LLaDA",
    model_type="llada",
    architectures=("LLaDAModelLM",),
    names=_LLADA,
    read=_read_llada,
    write=_write_llada,
    inert=frozenset(
        "attention_dropout auto_map bias_for_layer_norm block_group_size embedding_dropout flash_attention "  # noqa: SIM905
        "init_cutoff_factor init_device init_fn init_std layer_norm_with_affine mlp_ratio precision residual_dropout "
        "vocab_size layer_norm_eps n_kv_heads d_model".split()
    )
    | set(_OF_LLADA)
    | set(_LLADA_ONLY),
    rope_theta=500_000,
)

DREAM = replace(
    QWEN2,
    name="Dream",
    model_type="Dream",
    architectures=("DreamModel",),
    write=_writer("Dream", "DreamModel", "attention_bias"),
    inert=_QWEN_INERT | {"auto_map"},
    own={"visibility": "full", "shift": True},
    sampling={"remasking": "entropy"},
)

FAST_DLLM = replace(
    QWEN2,
    name="Fast-dLLM v2",
    model_type="Fast_dLLM_Qwen",
    architectures=("Fast_dLLM_QwenForCausalLM",),
    read=_read_fast_dllm,
    write=_writer("Fast_dLLM_Qwen", "Fast_dLLM_QwenForCausalLM", "attention_bias"),
    inert=_QWEN_INERT | {"auto_map"},
    own={"visibility": "block_causal", "shift": True, "block_origin": "start"},
)

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        QWEN3, QWEN2, LLAMA, QWEN3LLADA, SDAR, _a2d(QWEN3), _a2d(QWEN2), _a2d(LLAMA), LLADA, DREAM, FAST_DLLM,
    )
}  # fmt: skip

# Models that look like one that is known, or are often asked for: what is said of them.
_REFUSED = {
    "qwen3_moe": "a mixture of experts (qwen3_moe) is not supported; use a dense Qwen3",
    "sdar_moe": "a mixture of experts (sdar_moe) is not supported; use a dense SDAR",
    "llada2_moe": "LLaDA 2 is a mixture of experts, which is not supported; use LLaDA-8B",
    "nemotron_labs_diffusion": "Nemotron's diffusion models are not supported: what they see is not published",
}


def family_of(source: Mapping[str, Any]) -> Family:
    """The family of a `config.json`, by `model_type` and `architectures` together.

    Raises:
        InputError: none that this project knows, or two that contradict each other.
    """
    kind, named = source.get("model_type"), source.get("architectures") or []
    named = [str(name) for name in named] if isinstance(named, list) else [str(named)]
    if kind in _REFUSED:
        raise InputError(f"config: {_REFUSED[kind]}")
    if any("moe" in name.lower() for name in named) or source.get("num_experts"):
        raise InputError(f"config: a mixture of experts ({shown(named[0] if named else kind)}) is not supported")
    if any(name.startswith("EfficientDLM") for name in named):
        raise InputError("config: Efficient-DLM calls itself a qwen3 and is none; it is not supported")
    family = FAMILIES.get(kind) if isinstance(kind, str) else None
    if family is None:
        raise InputError(
            f"config: model_type {shown(kind)} is not supported; known are {listed(list(FAMILIES), most=20)}"
        )
    strangers = [name for name in named if name not in family.architectures]
    if strangers:
        raise InputError(
            f"config: model_type is {kind}, and architectures names {strangers[0]}, not {family.architectures[0]}; "
            "one of the two is of another family"
        )
    return family


def read(family: Family, source: Mapping[str, Any], said: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json under the names of `ModelConfig`'s fields, with what its model was trained with.

    What is said wins over what the file says, and that over what the family's models are.

    Raises:
        InputError: neither says what the model sees.
    """
    values = family.read({**source, **said})
    if values.get("visibility") is not None:
        own = FULL if values["visibility"] == "full" and family.own is AUTOREGRESSIVE else family.own
        if "visibility" in source and "visibility" not in said:
            own = {}  # a folder of ours says it all
    elif family.own is not AUTOREGRESSIVE:
        own = family.own
    elif values.get("is_causal") is False:
        own = FULL
    elif values.get("mask_token_id") is not None and not said:
        raise InputError(
            f"config: a {family.name} that names a mask token is a diffusion model, and nothing says what it sees; say "
            "--visibility full, or --visibility block_causal with its --block-length, and --shift if it predicts a "
            "token at the position before it"
        )
    else:
        own = AUTOREGRESSIVE
    return {**own, **{k: v for k, v in values.items() if v is not None or k not in own}}
