"""A model whose logits are not finite writes nothing: its rows end with an error, the others go on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from torch_twins import save_torch, torch_model

import qwen3llada_jax as q

V, MASK, BAD = 61, 60, 50
BESIDE = {"mask_token_id": MASK, "gen_length": 8, "block_length": 4}
OPTIONS = [
    {},
    {"temperature": 1.0, "top_p": 0.5},
    {"visibility": "block_causal", "cfg_scale": 1.0},
]


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    reference = torch_model(
        9, vocab_size=V, hidden_size=32, num_hidden_layers=2, initializer_range=0.35, tie_word_embeddings=False
    )
    return q.load(save_torch(reference, tmp_path_factory.mktemp("healthy")))


def with_table(model, change):
    """The model with another table of embeddings."""
    other = jax.tree.map(lambda x: x, model)
    other.embed_tokens = model.embed_tokens.copy()
    other.embed_tokens[...] = change(model.embed_tokens[...])
    return other


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_k16_weights_that_are_nan_write_nothing(healthy, options):
    broken = with_table(healthy, lambda table: table * jnp.nan)
    settings = q.SamplerConfig(**BESIDE, **options)
    with pytest.raises(q.InputError, match="rows 1, 2 of 2: the model's logits are not finite") as error:
        q.generate(broken, [[1, 2], [3]], settings)
    assert error.value.rows == [0, 1]
    assert (error.value.result.written_at == -1).all()
    with pytest.raises(q.InputError, match="not finite"):
        list(q.watch(broken, [[1, 2]], settings))


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_k16_a_broken_row_ends_and_the_others_go_on(healthy, options):
    """One token's embedding is infinite: only a prompt that holds it is lost."""
    broken = with_table(healthy, lambda table: table.at[BAD].set(jnp.inf))
    settings = q.SamplerConfig(**BESIDE, forbid=(BAD,), **options)
    prompts, keys = [[1, 2], [BAD], [3]], jax.random.split(jax.random.key(0), 3)
    with pytest.raises(q.InputError, match="row 2 of 3: the model's logits are not finite") as error:
        q.generate(broken, prompts, settings, key=keys)
    alone = q.generate(healthy, prompts, settings, key=keys)
    result = error.value.result
    assert [result.answers()[i] for i in (0, 2)] == [alone.answers()[i] for i in (0, 2)]
    assert set(result.answers()[1]) == {MASK}
    assert result.nfe[1] < result.nfe[0]
    assert np.isfinite(result.confidence).all()


def test_k16_holes_too(healthy):
    broken = with_table(healthy, lambda table: table * jnp.nan)
    with pytest.raises(q.InputError, match="row 1 of 1"):
        q.infill(broken, [[1, None, 2]], q.SamplerConfig(mask_token_id=MASK))
    with pytest.raises(q.InputError, match="row 1 of 1"):
        list(q.watch_infill(broken, [[1, None, 2]], q.SamplerConfig(mask_token_id=MASK)))
