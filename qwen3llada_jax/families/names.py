"""The names that families give their tensors: our weights' names → theirs, `{}` for each stacked axis, in order."""

QWEN = {
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

# `ff_out` is the leaf of two: down in a block, the head outside.
LLADA = {
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

# The PyTorch reference system's: Qwen3's model within two wrappers.
QWEN3LLADA = {
    ours: "backbone.backbone." + theirs.removeprefix("model.") if theirs.startswith("model.") else theirs
    for ours, theirs in QWEN.items()
}
