"""Text by unmasking, for transformers:

    model.generate(**tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left"),
                   custom_generate=FOLDER, trust_remote_code=True, max_new_tokens=128, steps=64)

Behind each prompt stand as many mask tokens as are to be written. Block by block, each pass of the model proposes a
token for every mask, and the surest of them are written (LLaDA, arXiv 2502.09992, algorithm 5). A text ends at an EOS.

`converters.to_hf` copies this file into an export as custom_generate/generate.py, with `MODEL` filled in.
"""

from typing import Any

import torch

# What the model was trained with.
MODEL: dict[str, Any] = {"mask_token_id": None, "visibility": "full"}

TIE = 1e-5  # probabilities nearer to each other are equal, and the earlier place is the surer


@torch.no_grad()
def generate(
    inputs: torch.Tensor | None = None,
    generation_config: Any = None,
    *,
    model: Any,
    input_ids: torch.Tensor | None = None,
    attention_mask: torch.Tensor | None = None,
    max_new_tokens: int | None = None,
    steps: int | None = None,
    block_length: int | None = None,
    temperature: float = 0.0,
    visibility: str | None = None,
    **others: Any,
) -> torch.Tensor:
    """Write `max_new_tokens` (default: 128) tokens behind each prompt; returns [B, P + max_new_tokens] ids.

    Behind the EOS at which a text ends, EOS is repeated.

    Args:
        inputs, input_ids: [B, P] prompts, padded on the left.
        attention_mask: [B, P] 0 where there is padding; None: nowhere.
        steps: passes over all blocks together, shared out evenly; None: one for each token.
        block_length: tokens of a block; None: as the model was trained, else 32.
        temperature: 0 writes the likeliest token; above, one drawn from softmax(logits / temperature).
        visibility: `full` or `block_causal`; None: as the model was trained.

    Raises:
        ValueError: settings that do not go together, or that unmasking does not have.
    """
    strange = sorted(name for name, value in others.items() if value is not None and value is not False)
    if strange:
        raise ValueError(f"{', '.join(strange)}: unmasking has no such setting; leave it out")
    prompts = input_ids if inputs is None else inputs
    if prompts is None:
        raise ValueError("no prompt: give inputs, [B, P] ids")
    settings = generation_config or model.generation_config
    mask_id, shift = MODEL["mask_token_id"], MODEL.get("shift", False)
    visibility = visibility or MODEL["visibility"]
    if visibility not in ("full", "block_causal", MODEL["visibility"]):
        raise ValueError(f"visibility must be full or block_causal, not {visibility!r}")
    origin = MODEL.get("block_origin", "prompt") if visibility == MODEL["visibility"] else "prompt"
    (B, P), G = prompts.shape, max_new_tokens or settings.max_new_tokens or 128
    S = block_length or MODEL.get("block_length") or min(32, G)
    blocks = -(-G // S)
    if G % S and origin != "start":
        raise ValueError(f"max_new_tokens {G} is not a multiple of block_length {S}; try {blocks * S}")
    if steps is not None and steps % blocks:
        raise ValueError(f"steps {steps} is not a multiple of the {blocks} blocks; try {-(-steps // blocks) * blocks}")
    passes = S if steps is None else steps // blocks
    is_prompt = torch.ones_like(prompts) if attention_mask is None else attention_mask
    is_prompt = is_prompt.bool()
    if bool((is_prompt[:, 1:] < is_prompt[:, :-1]).any()) or not bool(is_prompt[:, -1:].all()):
        raise ValueError("prompts must be padded on the left (padding_side='left')")

    # Rows: padding, prompt, masks. Where blocks are counted from position 0, masks fill the last block up.
    length = is_prompt.sum(1, keepdim=True)
    fill = -(length + G) % S if origin == "start" else torch.zeros_like(length)
    column = torch.arange(P + G + int(fill.max()), device=prompts.device)[None]
    tokens = torch.full((B, column.shape[1]), mask_id, device=prompts.device)
    tokens[:, :P] = prompts
    masked = (column >= P) & (column < P + G + fill)
    real = masked.clone()
    real[:, :P] = is_prompt
    position = column - (P - length)
    block = (position - (0 if origin == "start" else length)).div(S, rounding_mode="floor")
    if origin == "prompt":
        block = block.clamp(min=-1)  # the prompt is one
    bias = _bias(_attention(block, real, visibility), model.dtype)
    reads_causally = MODEL.get("causal_context", False) and visibility == "block_causal"
    looked_at = torch.where((position > 0) & shift, column - 1, column)

    forbidden = torch.zeros(model.config.vocab_size, dtype=torch.bool, device=prompts.device)
    forbidden[mask_id] = True
    forbidden[MODEL.get("live_vocab_size") or len(forbidden) :] = True
    ends = settings.eos_token_id if settings.eos_token_id is not None else MODEL.get("eos_token_id", [])
    ends = torch.as_tensor(ends, device=prompts.device).reshape(-1)

    now, step, shared = [-1] * B, [0] * B, [0] * B  # of each row: its block, passes over it, tokens shared out
    while bool(masked.any()):
        if reads_causally:
            current = block.masked_fill(~masked, torch.iinfo(block.dtype).max).amin(1, keepdim=True)
            bias = _bias(_causal_attention(block, real, current), model.dtype)
        logits = model(
            input_ids=tokens, attention_mask=bias, position_ids=position.clamp(min=0), use_cache=False
        ).logits
        for row in range(B):
            waits = masked[row].nonzero().flatten()
            if not len(waits):
                continue
            first = int(block[row, waits].min())
            here = waits[block[row, waits] == first]
            if first != now[row]:
                now[row], step[row], shared[row] = first, 0, S if origin == "start" else len(here)
            count = shared[row] // passes + (step[row] < shared[row] % passes)
            step[row] += 1
            scores = logits[row, looked_at[row, here]].float().masked_fill(forbidden, -torch.inf)
            p = scores.softmax(-1)
            new = p.argmax(-1) if not temperature else (scores / temperature).softmax(-1).multinomial(1)[:, 0]
            keep = _surest(p.gather(1, new[:, None])[:, 0], max(count, 1))
            tokens[row, here[keep]], masked[row, here[keep]] = new[keep], False
            _stop(tokens[row, P:], masked[row, P:], ends)
    return tokens[:, : P + G]


def _attention(block: torch.Tensor, real: torch.Tensor, visibility: str) -> torch.Tensor:
    """[B, L, L] who (rows) may look where (columns), by each token's block; padding sees itself alone."""
    of, at = block[:, :, None], block[:, None, :]
    sees = torch.ones_like(of == at)
    if visibility == "block_causal":
        sees = at <= of
    elif visibility == "block_bias":  # the prompt, and the same block
        sees = (at == -1) | (at == of)
        if MODEL.get("prompt_sees_answer"):
            sees |= of == -1
    itself = torch.eye(block.shape[1], dtype=torch.bool, device=block.device)
    return (sees & real[:, None, :] & real[:, :, None]) | itself


def _causal_attention(block: torch.Tensor, real: torch.Tensor, current: torch.Tensor) -> torch.Tensor:
    """[B, L, L] the same where tokens before the block `current` [B, 1] see those before them alone."""
    place = torch.arange(block.shape[1], device=block.device)
    is_context = block < current
    sees = torch.where(is_context[:, :, None], place[:, None] >= place, block[:, None, :] <= block[:, :, None])
    itself = torch.eye(block.shape[1], dtype=torch.bool, device=block.device)
    return (sees & real[:, None, :] & real[:, :, None]) | itself


def _bias(attention: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """[B, 1, L, L] what is added to the logits of attention."""
    bias = torch.zeros(attention.shape, dtype=dtype, device=attention.device)
    return bias.masked_fill(~attention, torch.finfo(dtype).min)[:, None]


def _surest(probability: torch.Tensor, count: int) -> torch.Tensor:
    """The places of the `count` highest, of nearly equal ones the earliest."""
    falling, order = probability.sort(descending=True, stable=True)
    group = torch.zeros_like(order)
    group[1:] = (falling[:-1] - falling[1:] > TIE).cumsum(0)
    return order[(group * len(order) + order).argsort()][:count]


def _stop(answer: torch.Tensor, masked: torch.Tensor, ends: torch.Tensor) -> None:
    """Where an EOS has no mask before it: it takes the place of every mask behind it."""
    written_ends = (torch.isin(answer, ends) & ~masked).nonzero().flatten()
    waits = masked.nonzero().flatten()
    if len(written_ends) and len(waits) and written_ends[0] < waits[0]:
        answer[waits], masked[waits] = answer[written_ends[0]].clone(), False
