"""The ways from an autoregressive model to a diffusion model that are compared, as keys of train.run."""

from dataclasses import dataclass, field
from typing import Any

from train.monitor.model_flops import Reading


@dataclass(frozen=True)
class Recipe:
    """One way to train.

    Attributes:
        said: what it does, in a line.
        keys: of train.run, beside those that all share.
        reads: what an update reads, for its cost.
        source: who trains like this.
    """

    said: str
    keys: dict[str, Any] = field(default_factory=dict)
    reads: Reading = field(default_factory=Reading)
    source: str = ""


def _in_blocks(said: str, length: int, source: str, *, joint: bool = False, **keys: Any) -> Recipe:
    block = "training.block_attention."
    every = {"training.objective": "block_diffusion", "training.shift": "true", f"{block}origin": "start"}
    if "schedule" in keys:
        every[f"{block}schedule"] = keys.pop("schedule")
    else:
        every[f"{block}block_length"] = length
    if joint:
        every |= {f"{block}causal_context": "true", "training.clean_loss": 0.2}
    return Recipe(said, every | keys, Reading(1, length, asks_clean=joint), source)


_SHIFT = {"training.shift": "true"}
RECIPES = {
    "autoregressive": _in_blocks("next-token training goes on: blocks of one token, each asked every time", 1,
                                 "the anchor", **{"training.noise.min_masking_rate": 1}),
    "scratch": Recipe("masked, fresh weights", {"model.from_scratch": "true"}, source="LLaDA"),
    "plain": Recipe("masked, each token predicted at its own position", source="LLaDA, dllm's A2D"),
    "shift": Recipe("masked, each token predicted at the position before it", _SHIFT, source="Dream"),
    "annealing": Recipe("shift, and the causal mask opens over the first 30%",
                        _SHIFT | {"training.causal_annealing": 0.3}, source="DiffuLLaMA"),
    "blocks-4": _in_blocks("[noisy ; clean], blocks of 4", 4, "BD3-LM"),
    "blocks-16": _in_blocks("[noisy ; clean], blocks of 16", 16, "BD3-LM"),
    "blocks-64": _in_blocks("[noisy ; clean], blocks of 64", 64, "BD3-LM"),
    "schedule": _in_blocks("blocks of 1 until 20%, of 4 until 50%, then of 16", 16, "LLaDA 2.0, SDAR",
                           schedule="1@0.2, 4@0.5, 16"),
    "i-dlm": _in_blocks("blocks of 4, all of each masked, and 0.2 · the clean half's next-token loss", 4, "I-DLM",
                        joint=True, **{"training.noise.min_masking_rate": 1}),
    "joint": _in_blocks("blocks of 4, and 0.2 · the clean half's next-token loss", 4, "Nemotron-Labs-Diffusion",
                        joint=True),
    "joint-clipped": _in_blocks("joint, at least 45% of each block masked", 4, "BD3-LM's clipped noise, joint",
                                joint=True, **{"training.noise.min_masking_rate": 0.45}),
    "joint-schedule": _in_blocks("joint, blocks of 1 until 10%, of 2 until 40%, then of 4", 4, "I-DLM's order, joint",
                                 joint=True, schedule="1@0.1, 2@0.4, 4"),
}  # fmt: skip
QUICK = ("autoregressive", "plain", "shift", "blocks-4", "joint")
