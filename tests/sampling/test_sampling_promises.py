"""What the sampler promises, and no more: ties, dtypes, one program for all ways to look, ends that travel along."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY, on_devices
from torch_twins import save_torch, torch_model

import qwen3llada_jax as q
from qwen3llada_jax.sampling.passes.step import best_first
from qwen3llada_jax.sampling.slots import TIE
from qwen3llada_jax.text.text_ends import with_text_ends
from qwen3llada_jax.writing.opening import open_folder

V, MASK = 62, 61
SHORT = q.SamplerConfig(mask_token_id=MASK, gen_length=8, block_length=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    reference = torch_model(
        9, vocab_size=V, hidden_size=32, num_hidden_layers=2, initializer_range=0.35, tie_word_embeddings=False
    )
    return save_torch(reference, tmp_path_factory.mktemp("promises"))


@pytest.fixture(scope="module")
def model(folder):
    return q.load(folder)


# K17


@pytest.mark.slow
@pytest.mark.parametrize(
    "rule", ["low_confidence", *(pytest.param(r, marks=pytest.mark.slow) for r in ("margin", "entropy"))]
)
def test_k17_an_empty_prompt_is_written_alike_in_every_batch(model, rule):
    """All its places tie: which comes first must not hang on how a batch of this size happens to round."""
    settings = dataclasses.replace(SHORT, gen_length=24, block_length=24, steps=6, remasking=rule)
    alone = q.generate(model, [[]], settings)
    assert np.flatnonzero(alone.written_at[0] == 0).tolist() == [0, 1, 2, 3]  # of equals, the first
    for others in ([[3]] * 6, [[5] * 30] * 2):
        batch = q.generate(model, [*others, []], settings)
        assert batch.answers()[-1] == alone.answers()[0]
        assert batch.written_at[-1, :24].tolist() == alone.written_at[0].tolist()


def test_k17_ties_are_broken_by_place_and_nothing_else_moves():
    near = 0.4 * TIE
    confidence = jnp.array([[[0.5, 0.7 - near, 0.7, 0.5 + 3 * TIE, 0.7 + near, 0.9]]])
    eligible = jnp.array([[[True, True, True, True, True, False]]])
    late = jnp.zeros_like(eligible)
    assert best_first(confidence, eligible, late, TIE)[0, 0].tolist() == [1, 2, 4, 3, 0, 5]
    assert best_first(confidence, eligible, late)[0, 0].tolist() == [4, 2, 1, 3, 0, 5]
    late = late.at[0, 0, 1].set(True)  # a tie, but of another rank
    assert best_first(confidence, eligible, late, TIE)[0, 0].tolist() == [2, 4, 3, 0, 1, 5]


@pytest.mark.parametrize(("dtype", "exact"), [("float32", True), ("bfloat16", False), ("float16", False)])
def test_k17_exact_is_said_of_float32_only(folder, dtype, exact):
    model = q.load(folder, dtype=dtype)
    cached = dataclasses.replace(SHORT, visibility="block_causal", cache="prefix")
    assert q.is_exact(cached, model) == exact
    assert q.is_exact(cached, model.config, dtype) == exact
    assert q.is_exact(dataclasses.replace(cached, cache="none"), model)
    assert not q.is_exact(dataclasses.replace(cached, visibility="full"), model)
    # A cache that is left to the model is the one that `for_model` takes.
    for visibility in ("full", "block_bias", "block_causal"):
        config = dataclasses.replace(model.config, visibility=visibility, block_length=4)
        complete = SHORT.for_model(config)
        assert q.is_exact(SHORT, config, dtype) == q.is_exact(complete, config, dtype)
        assert q.is_exact(SHORT, config, dtype) == (exact or visibility == "full")
        for named in (jnp.dtype(dtype), getattr(jnp, dtype)):
            assert q.is_exact(SHORT, config, named) == q.is_exact(SHORT, config, dtype)
    with pytest.raises(q.InputError, match="dtype 'float31' is unknown"):
        q.is_exact(cached, model, "float31")


# K18


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"cache": "dual"}, {"visibility": "block_causal"}], ids=str)
def test_k18_generating_and_watching_run_one_compiled_pass(model, options):
    """Nothing is compiled for the second way to look that the first has not."""
    settings = dataclasses.replace(SHORT, **options)
    before = q.compilations()
    *_, last = q.watch(model, [[1, 2], [3]], settings)
    programs = q.compilations() - before
    assert programs == (1 if settings.for_model(model.config).cache == "none" else 2)  # a cache is filled first
    result = q.generate(model, [[4], [5, 6]], settings)
    list(q.watch(model, [[4], []], settings))
    assert q.compilations() - before == programs
    again = q.finish(last)
    *_, canvas = q.watch(model, [[4], [5, 6]], settings)
    np.testing.assert_array_equal(result.tokens, q.finish(canvas).tokens)
    np.testing.assert_array_equal(again.tokens, q.generate(model, [[1, 2], [3]], settings).tokens)


@pytest.mark.slow
def test_k18_canvases_stay_readable_while_the_cache_is_renewed_in_place(model):
    canvases = list(q.watch(model, [[1, 2]], dataclasses.replace(SHORT, cache="dual")))
    left = [int(np.asarray(canvas.is_masked).sum()) for canvas in canvases]
    assert left == [8, 7, 6, 5, 4, 3, 2, 1, 0]


@pytest.mark.slow
def test_k18_watching_on_a_mesh_compiles_once(folder):
    with on_devices(4):
        mesh = q.make_mesh(data=2, tensor=2)
        spread = q.load(folder, mesh=mesh)
        with jax.set_mesh(mesh):
            before = q.compilations()
            list(q.watch(spread, [[1], [2]], SHORT))
            assert q.compilations() == before + 1


@pytest.mark.slow
def test_k18_room_for_longer_prompts_compiles_nothing_and_changes_no_token(model):
    settings = dataclasses.replace(SHORT, gen_length=12)
    prompts = [[[1, 2]], [[3] * 20], [[4] * 63]]
    roomy = [q.generate(model, p, settings, room=64).answers() for p in prompts[:1]]
    before = q.compilations()
    roomy += [q.generate(model, p, settings, room=64).answers() for p in prompts[1:]]
    assert q.compilations() == before
    assert roomy == [q.generate(model, p, settings).answers() for p in prompts]


def test_k18_a_loaded_model_stops_where_the_programs_do(tmp_path):
    """The end of a chat turn is one of its ends, and ids that no token owns are never written."""
    config = q.load(TINY).config
    names = {t["content"]: t["id"] for t in json.loads((TINY / "tokenizer.json").read_text())["added_tokens"]}
    assert set(config.eos_token_ids) == {names["<|endoftext|>"], names["<|im_end|>"]}
    assert config.live_vocab_size == 1 + max(names.values())

    opened = open_folder(TINY)  # which also finds a mask token for a model that never sees one
    assert opened.config == dataclasses.replace(config, mask_token_id=opened.config.mask_token_id)
    assert opened.ending(q.SamplerConfig()).eos_token_ids == config.eos_token_ids


def test_k18_ends_are_read_from_older_tokenizer_files_too(tmp_path):
    config = q.ModelConfig.from_hf(json.loads((TINY / "config.json").read_text()))
    assert with_text_ends(config, tmp_path) == config  # no tokenizer: what the config says
    (tmp_path / "vocab.json").write_text('{"a": 0, "<eos>": 5}', encoding="utf-8")
    (tmp_path / "added_tokens.json").write_text('{"<|im_end|>": 7, "<far>": 100000}', encoding="utf-8")
    (tmp_path / "special_tokens_map.json").write_text('{"eos_token": {"content": "<eos>"}}', encoding="utf-8")
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [9, 100000]}', encoding="utf-8")
    found = with_text_ends(config, tmp_path)
    assert found.eos_token_ids == (1024, 9, 5, 7)
    assert found.live_vocab_size == config.vocab_size
    (tmp_path / "vocab.json").write_text("[1", encoding="utf-8")
    with pytest.raises(q.InputError, match=r"vocab\.json: cannot be read as JSON"):
        with_text_ends(config, tmp_path)
    shutil.copy(TINY / "tokenizer.json", tmp_path)
    (tmp_path / "vocab.json").write_text("{}", encoding="utf-8")
    (tmp_path / "tokenizer.json").write_text('{"model": 3}', encoding="utf-8")
    with pytest.raises(q.InputError, match="its tokenizer files cannot be read"):
        with_text_ends(config, tmp_path)


# K16: what cannot fit is refused before anything is allocated


@pytest.mark.parametrize(
    ("prompts", "options", "part"),
    [
        (
            [[1] * 1000, [1] * 1010, [1]],
            {"gen_length": 16},
            r"row 2: 1,010 tokens and 16 to write are beyond the 1,024",
        ),
        ([[1]], {"gen_length": 2_000_000_000, "block_length": 4}, "2,000,000,000 to write are beyond the 1,024"),
    ],
)
def test_k16_beyond_the_trained_positions_is_refused(model, prompts, options, part):
    settings = dataclasses.replace(SHORT, **options)
    for call in (q.generate, lambda *given: list(q.watch(*given))):
        with pytest.raises(q.InputError, match=part):
            call(model, prompts, settings)


def test_k16_holes_beyond_the_positions_and_rows_beyond_memory(model):
    with pytest.raises(q.InputError, match="row 1: 1,025 tokens are beyond the 1,024 positions"):
        q.infill(model, [[1] * 1000 + [None] * 25], SHORT)
    stretched = jax.tree.map(lambda x: x, model)
    scaling = {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e6}}
    stretched.config = q.ModelConfig.from_hf(model.config.to_hf() | {"rope_scaling": None} | scaling)
    with pytest.raises(q.InputError, match=r"1 rows of 2,000,000,016 tokens need more than .* GB to write"):
        q.generate(stretched, [[1]], dataclasses.replace(SHORT, gen_length=2_000_000_000))
