"""Four published samplers once more, greedy, in plain PyTorch from their descriptions: what ours is compared with.

No cache: every pass runs the whole text under a mask written out in full. The numbers whose order decides something go
through `Close`, which keeps the smallest difference: where it is below float32's rounding, right samplers may differ.
Ids that ours never writes (`never`) are left out in all of them.
"""

import itertools
import math

import torch


class Close:
    """The closest decision so far."""

    def __init__(self):
        self.margin = math.inf

    def between(self, *numbers: float) -> None:
        """Numbers that were compared with each other."""
        found = sorted(numbers)
        self.margin = min([self.margin, *(b - a for a, b in itertools.pairwise(found))])


def logits_of(reference, tokens, allowed, positions=None) -> torch.Tensor:
    """[L V] of one row, [B L V] of a list of them; `allowed` [(B) L L] says who sees whom."""
    is_one = not isinstance(tokens[0], list)
    tokens, allowed = torch.tensor([tokens] if is_one else tokens), allowed[None] if is_one else allowed
    bias = torch.where(allowed, 0.0, torch.finfo(torch.float32).min)[:, None]
    with torch.no_grad():
        found = reference(tokens, attention_mask=bias, position_ids=positions).logits
    return found[0] if is_one else found


def blocks_see(block: torch.Tensor) -> torch.Tensor:
    """Everybody sees the blocks up to his own."""
    return block[:, None] >= block[None, :]


def proposals(logits, never, close) -> tuple[list[int], list[float], torch.Tensor]:
    """(token, its probability, the distribution) of each position; a close second is a close decision."""
    logits = logits.clone().double()
    logits[..., list(never)] = -math.inf
    probability = logits.softmax(-1)
    for row in logits.sort(-1, descending=True).values[..., :2].reshape(-1, 2).tolist():
        close.between(*row)
    best = probability.max(-1)
    return best.indices.tolist(), best.values.tolist(), probability


def surest(sure: dict[int, float], count: int, close: Close) -> list[int]:
    """The positions of the `count` highest numbers."""
    order = sorted(sure, key=lambda i: (-sure[i], i))
    if 0 < count < len(order):
        close.between(sure[order[count - 1]], sure[order[count]])
    return order[:count]


def shifted(logits: torch.Tensor) -> torch.Tensor:
    """Each position's logits are those of the position before; the first keeps its own."""
    return torch.cat([logits[..., :1, :], logits[..., :-1, :]], dim=-2)


def sdar(reference, prompt, gen_length, S, steps, mask, never, dynamic=None):
    """SDAR (arXiv 2510.06303): blocks of S from position 0, the first may begin with the prompt's tail.

    A pass writes S // steps tokens (the first S % steps passes one more), the surest; or all above `dynamic` if more.
    """
    close, passes = Close(), 0
    blocks = -(-(len(prompt) + gen_length) // S)
    tokens = prompt + [mask] * (blocks * S - len(prompt))
    allowed = blocks_see(torch.arange(blocks * S) // S)
    for block in range(len(prompt) // S, blocks):
        waiting, step = [i for i in range(block * S, block * S + S) if i >= len(prompt)], 0
        while waiting:
            found, sure, _ = proposals(logits_of(reference, tokens, allowed)[waiting], never, close)
            sure, found = dict(zip(waiting, sure, strict=True)), dict(zip(waiting, found, strict=True))
            count = min(S // steps + (step < S % steps), len(waiting))
            if dynamic is not None:
                for p in sure.values():
                    close.between(p, dynamic)
                count = max(count, sum(p > dynamic for p in sure.values()))
            for i in surest(sure, count, close):
                tokens[i] = found[i]
                waiting.remove(i)
            step, passes = step + 1, passes + 1
    return tokens[len(prompt) : len(prompt) + gen_length], passes, close.margin


def bd3lm(reference, prompts, gen_length, S, steps, mask, never, pad, right_shift=False):
    """dllm's BD3LM sampler: rows padded on the left to whole blocks, positions skip the padding; `steps` for a block.

    Under the linear schedule a pass writes round(what is masked / passes left), the surest.
    """
    width = -(-max(map(len, prompts)) // S) * S
    total = width + gen_length
    rows = [[pad] * (width - len(p)) + p + [mask] * gen_length for p in prompts]
    is_real = torch.tensor([[i >= width - len(p) for i in range(total)] for p in prompts])
    allowed = blocks_see(torch.arange(total) // S)[None] & is_real[:, None, :] & is_real[:, :, None]
    positions = torch.clamp(is_real.long().cumsum(1) - 1, min=0)
    closes, passes = [Close() for _ in prompts], 0
    for begin in range(width, total, S):
        waiting = [list(range(begin, begin + S)) for _ in prompts]
        for step in range(steps):
            logits = logits_of(reference, rows, allowed, positions)
            logits = shifted(logits) if right_shift else logits
            for b, places in enumerate(waiting):
                found, sure, _ = proposals(logits[b, places], never, closes[b])
                sure, found = dict(zip(places, sure, strict=True)), dict(zip(places, found, strict=True))
                for i in surest(sure, round(len(places) / (steps - step)), closes[b]):
                    rows[b][i] = found[i]
                    places.remove(i)
            passes += 1
        assert not any(waiting)
    return [row[width:] for row in rows], passes, [close.margin for close in closes]


def dream(reference, prompt, gen_length, steps, order, mask, never, eps=1e-3):
    """Dream (arXiv 2508.15487): everything sees everything, with shift; noise falls evenly from 1 to `eps`.

    Passes that write nothing are counted as none.
    """
    close, passes, P = Close(), 0, len(prompt)
    tokens, waiting = prompt + [mask] * gen_length, list(range(P, P + gen_length))
    allowed = torch.ones(P + gen_length, P + gen_length, dtype=torch.bool)
    times = torch.linspace(1, eps, steps + 1)
    for step in range(steps):
        share = len(waiting) * (1 - times[step + 1] / times[step])
        count = int(share) if step < steps - 1 else len(waiting)
        if not count:
            continue
        logits = shifted(logits_of(reference, tokens, allowed))
        found, sure, probability = proposals(logits[waiting], never, close)
        best = probability.sort(-1, descending=True).values
        sure = {
            "maskgit_plus": sure,
            "topk_margin": (best[:, 0] - best[:, 1]).tolist(),
            "entropy": (probability * (probability + 1e-10).log()).sum(-1).tolist(),
        }[order]
        sure, found = dict(zip(waiting, sure, strict=True)), dict(zip(waiting, found, strict=True))
        for i in surest(sure, count, close):
            tokens[i] = found[i]
            waiting.remove(i)
        passes += 1
    return tokens[P:], passes, close.margin


def fast_dllm_v2(reference, prompt, gen_length, S, part, threshold, mask, never):
    """Fast-dLLM v2 (arXiv 2509.26328): blocks of S from position 0, shift, parts of a block one after another.

    A block that begins with a mask gets its first token from the clean block before, alone. Then, part by part, all
    that is surer than the threshold is written, the surest in any case.
    """
    close, passes = Close(), 0
    P, blocks = len(prompt), -(-(len(prompt) + gen_length) // S)
    tokens, allowed = prompt + [mask] * (blocks * S - len(prompt)), blocks_see(torch.arange(blocks * S) // S)

    def proposed(waiting):
        found, sure, _ = proposals(shifted(logits_of(reference, tokens, allowed))[waiting], never, close)
        return dict(zip(waiting, found, strict=True)), dict(zip(waiting, sure, strict=True))

    for begin in range(P // S * S, blocks * S, S):
        if begin >= P:
            tokens[begin], passes = proposed([begin])[0][begin], passes + 1
        for first in range(begin, begin + S, part):
            waiting = [i for i in range(first, min(first + part, begin + S)) if i >= P and tokens[i] == mask]
            while waiting:
                found, sure = proposed(waiting)
                best = max(sure.values())
                for p in sure.values():
                    close.between(p, threshold)
                written = [i for i in waiting if sure[i] > threshold] or [i for i in waiting if sure[i] == best]
                if len(waiting) > 1 and best <= threshold:
                    close.between(*sorted(sure.values())[-2:])
                for i in written:
                    tokens[i] = found[i]
                waiting, passes = [i for i in waiting if i not in written], passes + 1
    return tokens[P : P + gen_length], passes, close.margin
