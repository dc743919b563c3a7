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

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from qwen3llada_jax.errors import InputError, brief, listed, shown
from qwen3llada_jax.families import configs, names
from qwen3llada_jax.families.configs import Reader, reader, writer

AUTOREGRESSIVE: dict[str, Any] = {
    "visibility": "block_causal",
    "block_length": 1,
    "shift": True,
    "block_origin": "start",
}
FULL: dict[str, Any] = {"visibility": "full", "block_length": None, "shift": False, "block_origin": "prompt"}


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
        kinds: what its checkpoints were trained with, where config.json does not say (trained_with.py): fields of
            `ModelConfig`. Of several, by the word in a model's name that tells which.
        block_length_in_name: whether a model's name may end in its block length, as in `-b16`.
        may_untie: whether the head may be another than the embedding though config.json calls it tied.
        sampling: how its models are sampled, as `SamplerConfig` has it; generation_config.json says more and wins.
            None: that file is of the autoregressive model that they are, or were made from, and counts for that alone.
    """

    name: str
    model_type: str
    architectures: tuple[str, ...]
    names: Mapping[str, str]
    read: Reader
    write: Reader
    inert: frozenset[str] = frozenset()
    rope_theta: int = 1_000_000
    has_qk_norm: bool = False
    biases: tuple[str, ...] = ()
    has_own_biases: bool = False
    kinds: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: {"": FULL})
    block_length_in_name: bool = False
    may_untie: bool = False
    sampling: Mapping[str, Any] | None = None


# ---- the families -------------------------------------------------------------------------------------------------

_QWEN_INERT = frozenset({"layer_types", "max_window_layers", "sliding_window", "use_sliding_window"})

QWEN3 = Family(
    name="Qwen3",
    model_type="qwen3",
    architectures=("Qwen3ForCausalLM", "Qwen3Model"),
    names=names.QWEN,
    read=reader(tie_word_embeddings=False, max_position_embeddings=32_768),
    write=writer("qwen3", "Qwen3ForCausalLM", attention_dropout=0.0, use_sliding_window=False, is_causal=False),
    inert=_QWEN_INERT,
    has_qk_norm=True,
    biases=("q", "k", "v", "o"),
    kinds={"": AUTOREGRESSIVE},
)

QWEN2 = Family(
    name="Qwen2",
    model_type="qwen2",
    architectures=("Qwen2ForCausalLM", "Qwen2Model"),
    names=names.QWEN,
    read=configs.read_qwen2,
    write=writer("qwen2", "Qwen2ForCausalLM", "attention_bias", attention_dropout=0.0, is_causal=False),
    inert=_QWEN_INERT,
    biases=("q", "k", "v"),
    has_own_biases=True,
    kinds={"": AUTOREGRESSIVE},
)

LLAMA = Family(
    name="Llama",
    model_type="llama",
    architectures=("LlamaForCausalLM", "LlamaModel"),
    names=names.QWEN,
    read=configs.read_llama,
    write=writer("llama", "LlamaForCausalLM", attention_dropout=0.0, mlp_bias=False, is_causal=False),
    inert=frozenset({"mlp_bias", "pretraining_tp", "is_llama_config", "rope_interleaved"}),
    rope_theta=500_000,
    biases=("q", "k", "v", "o"),
    kinds={"": AUTOREGRESSIVE},
)

QWEN3LLADA = replace(
    QWEN3,
    name="Qwen3LLaDA (PyTorch)",
    model_type="qwen3llada",
    architectures=("Qwen3LLadaForMaskedLM",),
    names=names.QWEN3LLADA,
    read=reader(tie_word_embeddings=False, max_position_embeddings=32_768, mask_token_id=126_336),
    write=writer("qwen3llada", "Qwen3LLadaForMaskedLM"),
    kinds={"": FULL},
    may_untie=True,
)

SDAR = replace(
    QWEN3,
    name="SDAR",
    model_type="sdar",
    architectures=("SDARForCausalLM",),
    read=configs.with_block_length(QWEN3.read, "block_size"),
    write=configs.writes_block_length(writer("sdar", "SDARForCausalLM"), "block_size"),
    inert=_QWEN_INERT
    | {"auto_map", "block_size", "debug", "ep_size", "fuse_cross_entropy", "micro_forward", "skip_checkpoint"}
    | {"use_deepep"},
    kinds={"": {"visibility": "block_causal", "block_length": 4, "shift": False, "block_origin": "start"}},
    block_length_in_name=True,
    sampling={},
)

LLADA = Family(
    name="LLaDA",
    model_type="llada",
    architectures=("LLaDAModelLM",),
    names=names.LLADA,
    read=configs.read_llada,
    write=configs.write_llada,
    inert=frozenset(
        "alibi_bias_max attention_layer_norm_with_affine auto_map flash_attention init_cutoff_factor init_device "  # noqa: SIM905
        "init_fn layer_norm_eps mlp_ratio precision".split()
    )
    | set(configs.LLADA_KEYS)
    | set(configs.LLADA_ONLY),
    rope_theta=500_000,
)

DREAM = replace(
    QWEN2,
    name="Dream",
    model_type="Dream",
    architectures=("DreamModel",),
    read=configs.read_dream,
    write=writer("Dream", "DreamModel", "attention_bias"),
    inert=_QWEN_INERT | {"auto_map", "use_mrope"},
    kinds={"": FULL | {"shift": True}},
    sampling={"remasking": "entropy"},
)

FAST_DLLM = replace(
    QWEN2,
    name="Fast-dLLM v2",
    model_type="Fast_dLLM_Qwen",
    architectures=("Fast_dLLM_QwenForCausalLM",),
    read=configs.with_block_length(configs.read_qwen2, "bd_size"),
    write=configs.writes_block_length(
        writer("Fast_dLLM_Qwen", "Fast_dLLM_QwenForCausalLM", "attention_bias"), "bd_size"
    ),
    inert=_QWEN_INERT | {"auto_map", "bd_size"},
    kinds={"": {"visibility": "block_causal", "block_length": 32, "shift": True, "block_origin": "start"}},
)

# dllm publishes two kinds of A2D under one model_type; only their names tell them apart.
_A2D_KINDS: dict[str, dict[str, Any]] = {
    "mdlm": FULL,
    "bd3lm": {"visibility": "block_causal", "block_length": 32, "shift": False, "block_origin": "aligned"},
}


def _a2d(base: Family) -> Family:
    model_type, architecture = f"a2d-{base.model_type}", f"A2D{base.name}LMHeadModel"
    without = ("attention_bias",) if base.has_own_biases else ()
    return replace(
        base,
        name=f"A2D {base.name}",
        model_type=model_type,
        architectures=(architecture,),
        write=writer(model_type, architecture, *without),
        kinds=_A2D_KINDS,
        may_untie=True,
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
    "lladamoe": "LLaDA-MoE is a mixture of experts, which is not supported; use LLaDA-8B",
    "llada2_moe": "LLaDA 2 is a mixture of experts, which is not supported; use LLaDA-8B",
    "nemotron_labs_diffusion": "Nemotron's diffusion models are not supported; use SDAR",
    "edlm": "Efficient-DLM is not supported; use SDAR",
}
# Keys that one family alone has: in the config.json of another they say that it is no model of that family.
_MARKS = {
    "block_size": "sdar",
    "bd_size": "Fast_dLLM_Qwen",
    "d_model": "llada",
    "n_layers": "llada",
    "n_heads": "llada",
    "mlp_hidden_size": "llada",
}


def family_of(source: Mapping[str, Any]) -> Family:
    """The family of a `config.json`, by `model_type` and `architectures` together.

    Raises:
        InputError: none that this project knows, or two that contradict each other.
    """
    kind, named = source.get("model_type"), source.get("architectures") or []
    named = [str(name) for name in named] if isinstance(named, list) else [str(named)]
    if any(name.startswith("EfficientDLM") for name in named):
        raise InputError(f"config: {_REFUSED['edlm']}; it calls itself a {brief(kind)} and is none")
    if isinstance(kind, str) and kind in _REFUSED:
        raise InputError(f"config: {_REFUSED[kind]}")
    if any("moe" in name.lower() for name in named) or source.get("num_experts"):
        raise InputError(
            f"config: a mixture of experts ({brief(named[0] if named else kind)}) is not supported; use a dense model"
        )
    family = FAMILIES.get(kind) if isinstance(kind, str) else None
    if family is None:
        raise InputError(
            f"config: model_type is {shown(kind)}; models of these can be read: {listed(FAMILIES, most=20)}"
        )
    strangers = [name for name in named if name not in family.architectures]
    if strangers:
        raise InputError(
            f"config: model_type is {kind}, and architectures names {brief(strangers[0])}, not "
            f"{family.architectures[0]}: one of the two is of another family, and which is not known"
        )
    for key in (key for key, of in _MARKS.items() if source.get(key) is not None and of != kind):
        of = _MARKS[key]
        raise InputError(
            f"config: model_type is {kind}, and {key} is a key of {FAMILIES[of].name} ({of}): a config.json of two "
            "families; take the one that the weights came with"
        )
    return family
