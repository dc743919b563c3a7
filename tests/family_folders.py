"""Folders as each family publishes them, with widths, layers and vocabulary cut, and the torch models they hold."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

V, MASK = 211, 205
_CUT = {
    "vocab_size": V,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
_QWEN = {
    "attention_dropout": 0.0, "bos_token_id": 203, "eos_token_id": 204, "hidden_act": "silu", "initializer_range": 0.02,
    "max_position_embeddings": 32768, "max_window_layers": 21, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
    "sliding_window": None, "torch_dtype": "bfloat16", "transformers_version": "4.51.0", "use_cache": True,
    "use_sliding_window": False,
}  # fmt: skip
_QWEN3 = {**_CUT, **_QWEN, "attention_bias": False, "head_dim": 16, "rope_scaling": None}
_LLAMA = {
    **_CUT, "attention_bias": False, "attention_dropout": 0.0, "hidden_act": "silu", "initializer_range": 0.02,
    "max_position_embeddings": 131072, "mlp_bias": False, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
    "torch_dtype": "bfloat16", "transformers_version": "4.45.0", "use_cache": True,
}  # fmt: skip
_LLADA = {
    "activation_type": "silu", "alibi": False, "alibi_bias_max": 8.0, "architectures": ["LLaDAModelLM"],
    "attention_dropout": 0.0, "attention_layer_norm": False, "attention_layer_norm_with_affine": True,
    "auto_map": {"AutoModel": "modeling_llada.LLaDAModelLM"}, "bias_for_layer_norm": False, "block_group_size": 1,
    "block_type": "llama", "d_model": 48, "embedding_dropout": 0.0, "embedding_size": V, "eos_token_id": 204,
    "flash_attention": False, "include_bias": False, "include_qkv_bias": False, "init_cutoff_factor": None,
    "init_device": "meta", "init_fn": "mitchell", "init_std": 0.02, "input_emb_norm": False, "layer_norm_type": "rms",
    "layer_norm_with_affine": True, "mask_token_id": MASK, "max_sequence_length": 4096, "mlp_hidden_size": 80,
    "mlp_ratio": 4, "model_type": "llada", "multi_query_attention": None, "n_heads": 4, "n_kv_heads": 4, "n_layers": 2,
    "pad_token_id": 204, "precision": "amp_bf16", "residual_dropout": 0.0, "rms_norm_eps": 1e-05, "rope": True,
    "rope_full_precision": True, "rope_theta": 500000.0, "scale_logits": False, "transformers_version": "4.46.3",
    "use_cache": False, "vocab_size": V, "weight_tying": False,
}  # fmt: skip
_LLAMA3 = {
    "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A published model, cut.

    Attributes:
        name: of its folder, as on the hub.
        config: its config.json.
        facts: (visibility, block length, shift, block origin).
        said: what its files leave open.
        stored_head: whether the head is in the files: as itself (True), or as a copy of the embedding ("copy").
        block: tokens that see each other, in the test's own words: None for everyone.
    """

    name: str
    config: dict[str, Any]
    facts: tuple[str, int | None, bool, str]
    said: dict[str, Any] = field(default_factory=dict)
    stored_head: bool | str = False

    @property
    def block(self) -> int | None:
        return None if self.facts[0] == "full" else self.facts[1]


AR, FULL = ("block_causal", 1, True, "start"), ("full", None, False, "prompt")


def _named(model_type: str, architecture: str, **more: Any) -> dict[str, Any]:
    return {"architectures": [architecture], "model_type": model_type, **more}


CASES = [
    Case("Qwen3-0.6B", _QWEN3 | _named("qwen3", "Qwen3ForCausalLM", tie_word_embeddings=True), AR),
    Case("Qwen2.5-0.5B", _CUT | _QWEN | _named("qwen2", "Qwen2ForCausalLM", tie_word_embeddings=True), AR),
    Case(
        "Llama-3.2-1B",
        _LLAMA | {"head_dim": 16, "rope_theta": 500000.0, "rope_scaling": _LLAMA3, "bos_token_id": 200}
        | _named("llama", "LlamaForCausalLM", tie_word_embeddings=True, eos_token_id=[201, 202, 204]),
        AR,
    ),
    Case(
        "Llama-3.1-8B",
        _LLAMA | {"rope_theta": 500000.0, "rope_scaling": _LLAMA3 | {"factor": 8.0}, "head_dim": None}
        | _named("llama", "LlamaForCausalLM", tie_word_embeddings=False),
        AR, stored_head=True,
    ),
    Case(
        "SmolLM2-135M-Instruct",
        _LLAMA | {"is_llama_config": True, "rope_interleaved": False, "rope_scaling": None, "rope_theta": 100000}
        | _named("llama", "LlamaForCausalLM", tie_word_embeddings=True, pad_token_id=2),
        AR,
    ),
    Case(
        "qwen3-llada",
        _QWEN3 | {"use_cache": False, "mask_token_id": MASK}
        | _named("qwen3llada", "Qwen3LLadaForMaskedLM", tie_word_embeddings=True),
        FULL, stored_head=True,
    ),
    Case(
        "SDAR-4B-Chat",
        _QWEN3
        | {"block_size": 4, "mask_token_id": MASK, "attn_implementation": "flex_attention", "fuse_cross_entropy": True}
        | {"debug": False, "ep_size": 1, "micro_forward": False, "skip_checkpoint": False, "use_deepep": False}
        | _named("sdar", "SDARForCausalLM", tie_word_embeddings=False, auto_map={"AutoModel": "modeling_sdar.SDAR"}),
        ("block_causal", 4, False, "start"), stored_head=True,
    ),
    Case(
        "SDAR-1.7B-Chat-b16",
        _QWEN3 | _named("sdar", "SDARForCausalLM", tie_word_embeddings=False),
        ("block_causal", 16, False, "start"), stored_head=True,
    ),
    Case(
        "Qwen3-0.6B-diffusion-mdlm-v0.1",
        _QWEN3 | _named("a2d-qwen3", "A2DQwen3LMHeadModel", tie_word_embeddings=True),
        FULL, stored_head="copy",
    ),
    Case(
        "Qwen2.5-Coder-0.5B-Instruct-diffusion-bd3lm-v0.1",
        _CUT | _QWEN | _named("a2d-qwen2", "A2DQwen2LMHeadModel", tie_word_embeddings=True),
        ("block_causal", 32, False, "aligned"), stored_head=True,
    ),
    Case(
        "mine",
        _LLAMA | {"rope_theta": 500000.0, "rope_scaling": _LLAMA3}
        | _named("a2d-llama", "A2DLlamaLMHeadModel", tie_word_embeddings=False),
        ("block_causal", 8, False, "aligned"), {"visibility": "block_causal", "block_length": 8}, stored_head=True,
    ),
    Case("LLaDA-8B-Instruct", _LLADA, FULL, stored_head=True),
    Case(
        "iLLaDA-8B",
        _LLADA | {"n_kv_heads": 2, "weight_tying": True, "max_sequence_length": 8192, "mask_token_id": 5}
        | {"eos_token_id": 2, "pad_token_id": 1, "bos_token_id": 0},
        FULL,
    ),
    Case(
        "Dream-v0-Instruct-7B",
        _CUT | _QWEN | {"mask_token_id": MASK, "pad_token_id": 203, "use_mrope": False, "rope_scaling": None}
        | _named("Dream", "DreamModel", tie_word_embeddings=False, auto_map={"AutoModel": "modeling_dream.DreamModel"}),
        ("full", None, True, "prompt"), stored_head=True,
    ),
    Case(
        "Fast_dLLM_v2_7B",
        _CUT | _QWEN | {"bd_size": 32, "pad_token_id": 204, "layer_types": ["full_attention"] * 2}
        | _named("Fast_dLLM_Qwen", "Fast_dLLM_QwenForCausalLM", tie_word_embeddings=False),
        ("block_causal", 32, True, "start"), stored_head=True,
    ),
    Case(
        "open-dcoder-0.5B",
        _CUT | _QWEN | {"mask_token_id": MASK} | _named("qwen2", "Qwen2ForCausalLM", tie_word_embeddings=True),
        ("full", None, True, "prompt"), {"visibility": "full", "shift": True},
    ),
]  # fmt: skip

_BASES = {
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}


def base_of(case: Case) -> str:
    """The model of transformers with the same layers; empty for LLaDA's."""
    kind = case.config["model_type"]
    others = {"Dream": "qwen2", "Fast_dLLM_Qwen": "qwen2", "sdar": "qwen3", "qwen3llada": "qwen3", "llada": ""}
    return others.get(kind, kind.removeprefix("a2d-"))


def torch_model(case: Case, seed: int = 0) -> torch.nn.Module:
    """The causal model of transformers that has this case's layers, every weight away from its initial value."""
    config_of, model_of = _BASES[base_of(case)]
    values = {k: v for k, v in case.config.items() if k not in ("architectures", "model_type", "torch_dtype")}
    tied = values.pop("tie_word_embeddings") and case.stored_head is not True
    torch.manual_seed(seed)
    model = model_of._from_config(config_of(**values, tie_word_embeddings=tied), attn_implementation="eager").eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.add_((0.3 if "norm" in name else 0.1) * torch.randn_like(weight))
    return model


def llada_weights(case: Case, seed: int = 0) -> dict[str, torch.Tensor]:
    """A LLaDA's tensors under its own names."""
    c, draw = case.config, torch.Generator().manual_seed(seed)
    D, F, H = c["d_model"], c["mlp_hidden_size"], c["d_model"] // c["n_heads"]
    shapes = {"model.transformer.wte.weight": (V, D), "model.transformer.ln_f.weight": (D,)}
    if not c["weight_tying"]:
        shapes["model.transformer.ff_out.weight"] = (V, D)
    for n in range(c["n_layers"]):
        block = {
            "attn_norm": (D,), "ff_norm": (D,), "q_proj": (c["n_heads"] * H, D), "k_proj": (c["n_kv_heads"] * H, D),
            "v_proj": (c["n_kv_heads"] * H, D), "attn_out": (D, c["n_heads"] * H), "ff_proj": (F, D), "up_proj": (F, D),
            "ff_out": (D, F),
        }  # fmt: skip
        shapes |= {f"model.transformer.blocks.{n}.{name}.weight": shape for name, shape in block.items()}
    weights = {name: 0.15 * torch.randn(shape, generator=draw) for name, shape in shapes.items()}
    return {name: 1 + 2 * w if w.ndim == 1 else w for name, w in weights.items()}


def tensors_of(case: Case, seed: int = 0) -> dict[str, torch.Tensor]:
    """What its safetensors hold."""
    if not base_of(case):
        return llada_weights(case, seed)
    tensors = {name: weight.clone() for name, weight in torch_model(case, seed).state_dict().items()}
    if not case.stored_head:
        del tensors["lm_head.weight"]
    if case.config["model_type"] == "qwen3llada":
        return {
            name.replace("model.", "backbone.backbone.", 1) if name.startswith("model.") else name: weight
            for name, weight in tensors.items()
        }
    return tensors


def save(case: Case, parent: Path, dtype: torch.dtype = torch.float32) -> Path:
    """The case's folder within another."""
    folder = parent / case.name
    folder.mkdir(parents=True)
    tensors = {name: weight.to(dtype).contiguous() for name, weight in tensors_of(case).items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(case.config))
    return folder
