"""The sampler's rules once more, in PyTorch and plain Python, for one greedy text: what the tests compare with.

No cache, no batch, no compiled program: every pass runs the whole model over the whole text, and the rules are loops
over lists, in double precision behind the model's float32. `margin` is the smallest difference between two numbers
whose order decided anything: where it is below the model's rounding errors, two right samplers may disagree.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from conftest import rule


class Text(NamedTuple):
    """A finished text: ids, the pass that wrote each (-1: none did), confidences, forward passes, closest decision."""

    tokens: list[int]
    written_at: list[int]
    confidence: list[float]
    nfe: int
    margin: float


def generate(reference, prompt: Sequence[int], *, gen_length: int, **options) -> Text:
    """`sample` of the prompt and `gen_length` holes behind it; all of the text, prompt included."""
    return sample(reference, [*prompt, *[None] * gen_length], **options)


def sample(
    reference,
    text: Sequence[int | None],
    *,
    mask_token_id: int,
    block_length: int,
    steps: int | None = None,
    visibility: str = "full",
    cfg_scale: float = 0.0,
    repetition_penalty: float = 1.0,
    remasking: str = "low_confidence",
    threshold: float | None = None,
    factor: float | None = None,
    entropy_bound: float | None = None,
    revise: int = 0,
    forbid: Sequence[int] = (),
    eos: str = "free",
    eos_token_ids: Sequence[int] = (),
    min_length: int = 0,
    stop_at_eos: bool = True,
    shift: bool = False,
    origin: str = "prompt",
    causal_context: bool = False,
) -> Text:
    """Fill the holes (None) of a text: `block_length` of them at a time, or those among so many positions.

    Where blocks are hidden, the text before the first hole is the prompt, and blocks are counted from there; under
    `origin` "start" from position 0, and then `steps` are those of a block. With `causal_context` what stands before
    the block is read from left to right.
    """
    L = len(text)
    holes = [i for i in range(L) if text[i] is None]
    prompt_length = holes[0] if holes else L
    blocks = [holes[i : i + block_length] for i in range(0, len(holes), block_length)]
    if visibility != "full":
        begin = 0 if origin == "start" else prompt_length
        cuts = [range(i, i + block_length) for i in range(begin, L, block_length)]
        blocks = [[i for i in cut if i in holes] for cut in cuts if set(cut) & set(holes)]
    tokens = [mask_token_id if token is None else token for token in text]
    masked = [token is None for token in text]
    written_at, confidence = [-1] * L, [1.0] * L
    bias = bias_of(visibility, L, prompt_length, block_length, origin)
    adaptive = threshold is not None or factor is not None or entropy_bound is not None
    steps_per_block = None if adaptive else block_length
    if steps is not None:
        steps_per_block = steps if origin == "start" else steps // len(blocks)
    passes, margin, ended = 0, math.inf, False

    def compare(a: float, b: float) -> None:
        nonlocal margin
        margin = min(margin, abs(a - b))

    for block in blocks:
        budget, step = revise, 0
        if causal_context:
            begin = next(cut[0] for cut in cuts if block[0] in cut)
            bias = causal_bias(L, begin, block_length)
        while any(masked[i] for i in block) and not ended:
            logits = logits_of(reference, tokens, bias, shift)
            if cfg_scale > 0:
                blank = [mask_token_id if token is not None else tokens[i] for i, token in enumerate(text)]
                without = logits_of(reference, blank, bias, shift)
                logits = without + (cfg_scale + 1) * (logits - without)
            seen = {tokens[i] for i in range(L) if not masked[i]}
            waiting = [i for i in block if masked[i]]
            proposal, sure, order_by, entropy = {}, {}, {}, {}
            for i in waiting:
                row = logits[i].clone()
                for token in seen:
                    row[token] = row[token] / repetition_penalty if row[token] > 0 else row[token] * repetition_penalty
                never = {mask_token_id, *forbid}
                if eos == "never" or holes.index(i) < min_length:
                    never |= set(eos_token_ids)
                row[list(never)] = -math.inf
                probability = row.softmax(-1)
                first, second = row.sort(descending=True).values[:2].tolist()
                compare(first, second)
                proposal[i] = int(row.argmax())
                sure[i] = float(probability[proposal[i]])
                entropy[i] = -sum(p * math.log(p) for p in probability.tolist() if p > 0)
                best = sorted(probability.tolist(), reverse=True)
                order_by[i] = {
                    "low_confidence": sure[i],
                    "margin": best[0] - best[1],
                    "entropy": -entropy[i],
                    "left_to_right": -float(i),
                }[remasking]
            is_late = {i: eos == "last" and proposal[i] in eos_token_ids for i in waiting}
            order = sorted(waiting, key=lambda i: (is_late[i], -order_by[i], i))

            share = 0
            if steps_per_block is not None:
                many = block_length if origin == "start" else len(block)
                share = many // steps_per_block + (step < many % steps_per_block)
            if adaptive:
                n = 1
                if threshold is not None:
                    bound = min(threshold, sure[order[0]] - 1e-5)
                    compare(threshold, sure[order[0]] - 1e-5)
                    if len(order) > 1 and threshold > sure[order[0]] - 1e-5 and is_late[order[0]] == is_late[order[1]]:
                        compare(order_by[order[0]], order_by[order[1]])
                    while n < len(order):
                        compare(sure[order[n]], bound)
                        if sure[order[n]] <= bound:
                            break
                        n += 1
                if factor is not None:
                    for many in range(1, len(order) + 1):
                        left = (many + 1) * (1 - min(sure[i] for i in order[:many]))
                        compare(left, factor)
                        if left < factor:
                            n = many
                if entropy_bound is not None:
                    for many in range(2, len(order) + 1):
                        found = [entropy[i] for i in order[:many]]
                        compare(sum(found) - max(found), entropy_bound)
                        if sum(found) - max(found) <= entropy_bound:
                            n = many
                early = sum(not is_late[i] for i in waiting)
                if early:
                    n = min(n, early)
                n = max(n, share)
                if steps_per_block is not None and step >= steps_per_block - 1:
                    n = len(waiting)
            else:
                n = share
            n = min(n, len(waiting))

            kept = [i for i in block if not masked[i]]
            rate = 1 if steps_per_block is None else -(-revise // steps_per_block)
            r = min(rate, budget, len(kept), len(waiting) - n)
            budget -= r
            if n + r < len(order) and is_late[order[n + r - 1]] == is_late[order[n + r]]:
                compare(order_by[order[n + r - 1]], order_by[order[n + r]])
            doubted = sorted(kept, key=lambda i: (confidence[i], i))
            if 0 < r < len(doubted):
                compare(confidence[doubted[r - 1]], confidence[doubted[r]])
            for i in doubted[:r]:
                tokens[i], masked[i], written_at[i], confidence[i] = mask_token_id, True, -1, 1.0
            for i in order[: n + r]:
                tokens[i], masked[i], written_at[i], confidence[i] = proposal[i], False, passes, sure[i]
            passes, step = passes + 1, step + 1

            if stop_at_eos:
                for i in holes:
                    if masked[i]:
                        break
                    if tokens[i] in eos_token_ids:
                        tokens = [tokens[i] if masked[j] else tokens[j] for j in range(L)]
                        masked, ended = [False] * L, True
                        break
    assert not any(masked)
    return Text(tokens, written_at, confidence, passes * (2 if cfg_scale > 0 else 1), margin)


def bias_of(
    visibility: str, length: int, prompt_length: int, block_length: int, origin: str = "prompt"
) -> torch.Tensor:
    allowed = [[rule(visibility, i, j, prompt_length, block_length) for j in range(length)] for i in range(length)]
    if origin != "prompt":
        block = [(i - (prompt_length if origin == "aligned" else 0)) // block_length for i in range(length)]
        allowed = [[block[j] <= block[i] for j in range(length)] for i in range(length)]
    return torch.where(torch.tensor(allowed), 0.0, torch.finfo(torch.float32).min)[None, None]


def causal_bias(length: int, begin: int, block_length: int) -> torch.Tensor:
    """Text before the block at `begin` sees what stands before it and itself; the block sees that text and itself."""
    allowed = torch.zeros(length, length, dtype=torch.bool)
    for i in range(length):
        for j in range(length):
            allowed[i, j] = j <= i if i < begin else j < begin + block_length
    return torch.where(allowed, 0.0, torch.finfo(torch.float32).min)[None, None]


def logits_of(reference, tokens: Sequence[int], bias: torch.Tensor, shift: bool = False) -> torch.Tensor:
    """[L V]; with `shift` those of the position before, of position 0 its own."""
    with torch.no_grad():
        logits = reference(torch.tensor([tokens]), attention_mask=bias).logits[0].double()
    return torch.cat([logits[:1], logits[:-1]]) if shift else logits
