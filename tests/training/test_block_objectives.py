"""Block diffusion and what goes with it: losses and gradients beside PyTorch, expectations beside enumeration."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from test_shift import MASK, B, L, S, batch_of, configured, twin

from qwen3llada_jax.checkpoint.hf_names import flatten
from train import step as training
from train.objective import objective_of

DIFFUSION = {"training.objective": "block_diffusion", "training.block_attention.block_length": S}
FROM_0 = {"training.block_attention.origin": "start"}
JOINT = {"training.block_attention.causal_context": True, "training.clean_loss": 0.2}


# ---- beside PyTorch ------------------------------------------------------------------------------------------


def by_torch(
    model, example, batch, mode: str, *, shift: bool, causal: bool, from_0: bool, normalization: str
) -> torch.Tensor:
    """The losses from transformers' logits of what our noise left, each row a pass over its own [noisy ; clean]."""
    tokens, noisy = np.asarray(batch.tokens), np.asarray(example.inputs)[:, :L]
    prompts, sizes = np.asarray(batch.prompt_length), np.asarray(batch.real_length)
    segment = np.zeros((B, L), int) if batch.segment_ids is None else np.asarray(batch.segment_ids)
    place = np.tile(np.arange(L), (B, 1)) if batch.positions is None else np.asarray(batch.positions)
    sums, clean_sums = [], []
    for b in range(B):
        n = sizes[b]
        P = 0 if from_0 or mode == "pretrain" else prompts[b]
        block = [-1 if place[b, i] < P else (place[b, i] - P) // S for i in range(n)]
        first = [0 if block[i] < 0 else P + block[i] * S for i in range(n)]  # where its block begins
        allowed = np.zeros((2 * n, 2 * n), bool)
        for i, j in itertools.product(range(n), range(n)):
            if segment[b, i] != segment[b, j]:
                continue
            allowed[i, j] = first[i] == first[j]
            allowed[i, n + j] = place[b, j] < first[i]
            allowed[n + i, n + j] = place[b, j] <= place[b, i] if causal else first[j] <= first[i]
        hidden = torch.zeros(1, 1, 2 * n, 2 * n, dtype=torch.float64).masked_fill(torch.tensor(~allowed), -1e300)
        ids = torch.tensor(np.concatenate([noisy[b, :n], tokens[b, :n]])).long()[None]
        both = torch.tensor(np.tile(place[b, :n], 2))[None]
        log_p = model(ids, attention_mask=hidden, position_ids=both).logits.log_softmax(-1)[0]
        has_left = [i > 0 and segment[b, i] == segment[b, i - 1] for i in range(n)]
        asked = [i for i in range(prompts[b] if mode == "sft" else 0, n) if has_left[i] or not shift]
        noised = [i for i in range(n) if noisy[b, i] == MASK]
        assert set(noised) <= set(asked)
        total = 0.0
        for i in noised:
            t = float(np.asarray(example.t)[b, i])
            at = i if not shift else n + i - 1 if first[i] == place[b, i] else i - 1
            total = total - log_p[at, tokens[b, i]] / (0.9 * t + 0.1)
        follows = [i for i in range(prompts[b] if mode == "sft" else 0, n) if has_left[i]]
        clean = -sum(log_p[n + i - 1, tokens[b, i]] for i in follows) if follows else torch.zeros(())
        sums.append((total, len(asked)))
        clean_sums.append((clean, len(follows)))

    def mean(parts):
        if normalization == "rows":
            return sum(x / n for x, n in parts if n) / sum(n > 0 for _, n in parts)
        return sum(x for x, _ in parts) / sum(n for _, n in parts)

    return mean(sums) + (0.2 * mean(clean_sums) if causal else 0.0)


@pytest.mark.parametrize(
    ("kind", "mode", "shift", "causal", "from_0", "divided"),
    [
        ("qwen3", "pretrain", False, False, False, True),
        ("qwen3", "sft", True, True, False, False),
        ("qwen2", "sft", False, False, True, False),
        ("llama", "pretrain", True, True, False, True),
        ("llama", "sft", True, False, False, False),
    ],
)
def test_loss_and_gradients_are_pytorchs(kind, mode, shift, causal, from_0, divided, tmp_path):
    theirs, ours = twin(kind, tmp_path)
    rows = mode == "sft" and not shift
    more = DIFFUSION | {"training.shift": shift, "dataset.pack_to_max_length": divided}
    more |= (
        (FROM_0 if from_0 else {}) | (JOINT if causal else {}) | ({} if rows else {"training.normalization": "tokens"})
    )
    config, batch = configured(mode, **more), batch_of(mode, divided=divided)
    config = dataclasses.replace(config, training=dataclasses.replace(config.training, block_attention=settled(config)))
    example = objective_of(config, MASK, MASK)(batch, jax.random.key(4), jnp.int32(2))
    expected = by_torch(theirs, example, batch, mode, shift=shift, causal=causal, from_0=from_0,
                        normalization="rows" if rows else "tokens")  # fmt: skip
    expected.backward()
    graphdef, params = nnx.split(ours, nnx.Param)
    step = jax.jit(jax.value_and_grad(lambda p: training.loss_and_sums(nnx.merge(graphdef, p), example)[0]))
    loss, gradient = step(params)
    assert abs(float(loss) / expected.item() - 1) < 1e-5
    reference = {name: weight.grad for name, weight in theirs.named_parameters()}
    for name, found in flatten(nnx.to_pure_dict(gradient)).items():
        their = ours.config.family.names[name]
        wanted = torch.stack([reference.pop(their.format(i)) for i in range(2)]) if "{}" in their else reference[their]
        wanted = wanted.numpy().reshape(found.shape)
        assert np.abs(np.asarray(found) - wanted).max() <= 1e-5 * np.abs(wanted).max(), name


def settled(config):
    """Its blocks, as a run has them."""
    return dataclasses.replace(config.training.block_attention, enabled=True, visibility="block_causal")
