"""Unmasking in blocks that see what stands before them (BD3-LM, arXiv 2503.09573), with transformers' cache of keys and
values: plainly in PyTorch, greedy, the surest of a block first.

Two forms write the same. One keeps the cache: a finished block is added to it, and what a pass of the block has added
is cut off again. The other works in the manner of dllm's sampler: for every block the text before it runs anew, and
every pass works on a copy of the cache.
"""

import copy
from typing import Any


def unmask(
    model: Any, prompts: Any, *, gen_length: int, block_length: int, steps: int, mask: int, copies: bool = False
) -> Any:
    """[B, P + gen_length] ids. The prompt [B, P] is one block, which sees itself whole."""
    import torch
    from transformers import DynamicCache

    (B, P), device = prompts.shape, prompts.device
    text = torch.cat([prompts, prompts.new_full((B, gen_length), mask)], dim=1)
    passes = block_length * steps // gen_length
    cache, known = DynamicCache(config=model.config), 0

    def run(tokens: Any, cache: Any, bias: Any = None) -> Any:
        return model(tokens, past_key_values=cache, use_cache=True, attention_mask=bias).logits

    for start in range(P, P + gen_length, block_length):
        if copies:
            cache = DynamicCache(config=model.config)
            run(text[:, :start], cache, block_bias(P, start, block_length, model.dtype, device))
        else:
            run(text[:, known:start], cache)
            known = start
        block = text[:, start : start + block_length]  # a view: what is written here is written there
        for _ in range(passes):
            held = copy.deepcopy(cache) if copies else cache
            logits = run(block, held).float()
            if not copies:
                cache.crop(-block_length)
            logits[..., mask] = -torch.inf
            proposal = logits.argmax(-1)
            sure = logits.softmax(-1).gather(-1, proposal[..., None])[..., 0]
            chosen = torch.where(block == mask, sure, -torch.inf).topk(block_length // passes, dim=-1).indices
            block.scatter_(1, chosen, proposal.gather(1, chosen))
    return text


def block_bias(prompt: int, length: int, block_length: int, dtype: Any, device: Any) -> Any:
    """Each block sees itself and what stands before it: [1, 1, length, length], 0 or −∞."""
    import torch

    block = ((torch.arange(length, device=device) - prompt) // block_length).clamp(min=-1)
    nothing = torch.zeros(1, 1, length, length, dtype=dtype, device=device)
    return nothing.masked_fill(block[None, :] > block[:, None], -torch.inf)
