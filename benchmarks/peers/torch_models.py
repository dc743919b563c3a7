"""transformers' Qwen3 as the peers run it: bidirectional unless it is autoregressive, sdpa attention, a GPU if there is
one."""

import warnings
from pathlib import Path
from typing import Any

from benchmarks.peers.shapes import Shape


def make_folder(folder: Path, shape: Shape, *, is_causal: bool = False) -> None:
    """A random Qwen3 as a Hugging Face folder in bfloat16; weights wide enough that it writes various tokens."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(0)
    config = Qwen3Config(  # type: ignore[call-arg]
        **{"initializer_range": 0.05, "max_position_embeddings": 1024, **shape}, is_causal=is_causal, eos_token_id=None,
        bos_token_id=None, rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    )  # fmt: skip
    Qwen3ForCausalLM(config).bfloat16().save_pretrained(folder)


def device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def opened(folder: Path | str, *, is_causal: bool = False, dtype: str = "float32") -> Any:
    """A folder's model, ready to be asked."""
    import torch
    from transformers import AutoConfig, Qwen3ForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    # The name that every version of transformers 5 knows.
    warnings.filterwarnings("ignore", "`past_key_values` is deprecated", FutureWarning)
    config = AutoConfig.from_pretrained(folder)
    config.is_causal = is_causal
    model = Qwen3ForCausalLM.from_pretrained(folder, config=config, dtype=getattr(torch, dtype))
    return model.eval().to(device())


def drawn(shape: Shape) -> Any:
    """Fresh float32 weights, ready to be trained."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": 1e6}
    config = Qwen3Config(**shape, rope_parameters=rope, is_causal=False, use_cache=False)  # type: ignore[call-arg]
    with torch.device(device()):
        return Qwen3ForCausalLM._from_config(config, attn_implementation="sdpa").train()


def is_compiled(way: str) -> bool:
    return way == "compile"


def wait() -> None:
    """Until the device has done what it was asked."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
