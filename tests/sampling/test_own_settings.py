"""A model's own settings: what generation_config.json and its family say, under what is asked for."""

import json
import shutil
from pathlib import Path

import pytest

import qwen3llada_jax as q
from qwen3llada_jax import cli
from qwen3llada_jax.model.config import read_model_config
from qwen3llada_jax.text.sampling_defaults import unread, with_sampling
from qwen3llada_jax.writing.settings import in_force
from sample import chat, compare, flags, generate

SHAPES = dict(vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
AUTOREGRESSIVE = {"model_type": "qwen3"}
SDAR = {"model_type": "sdar", "block_size": 4}
DREAM = {"model_type": "Dream", "mask_token_id": 60}
ADAPTED = {"model_type": "qwen3", "visibility": "full", "mask_token_id": 60}
DRAWS = {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95}


def sampling(folder: Path, keys: dict, said: dict | None) -> dict:
    """What a folder with these keys in config.json and generation_config.json has for its own settings."""
    config = SHAPES | {"num_key_value_heads": 1, "rope_theta": 1e4} | keys
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").unlink(missing_ok=True)
    if said is not None:
        (folder / "generation_config.json").write_text(json.dumps(said))
    return dict(with_sampling(read_model_config(folder), folder).sampling)


def test_what_a_models_files_say(tmp_path):
    for keys, said, expected in (
        (AUTOREGRESSIVE, None, {}),
        (AUTOREGRESSIVE, DRAWS, {"temperature": 0.6, "top_k": 20, "top_p": 0.95}),
        (AUTOREGRESSIVE, DRAWS | {"do_sample": False}, {}),
        (AUTOREGRESSIVE, {"temperature": 0.6}, {}),  # transformers is greedy
        (AUTOREGRESSIVE, {"do_sample": True}, {"temperature": 1.0, "top_k": 50}),  # its own numbers
        (AUTOREGRESSIVE, {"do_sample": True, "top_k": 0, "top_p": 1.0}, {"temperature": 1.0}),
        (AUTOREGRESSIVE, {"repetition_penalty": 1.1}, {"repetition_penalty": 1.1}),
        (SDAR, None, {}),
        (SDAR, {"temperature": 0.6, "top_k": 20, "top_p": 0.95}, {"temperature": 0.6, "top_k": 20, "top_p": 0.95}),
        (SDAR, DRAWS | {"do_sample": False}, {}),
        (DREAM, None, {"remasking": "entropy"}),
        (DREAM, {"temperature": 0.2, "top_p": 0.95}, {"remasking": "entropy", "temperature": 0.2, "top_p": 0.95}),
        (ADAPTED, DRAWS, {}),  # what is said there is said of the model that it was made from
        (ADAPTED | {"sampling": {"threshold": 0.8}}, DRAWS, {"threshold": 0.8}),
    ):
        assert sampling(tmp_path, keys, said) == expected, (keys, said)
    written = q.ModelConfig(**SHAPES, num_key_value_heads=1, sampling=(("top_k", 5), ("remasking", "margin")))
    assert q.ModelConfig.from_hf(written.to_hf()) == written
    for wrong in ({"top_k": [5]}, "greedy", [1]):
        with pytest.raises(q.InputError, match="config: sampling"):
            sampling(tmp_path, ADAPTED | {"sampling": wrong}, None)


def test_what_no_setting_stands_for_is_named(tmp_path):
    """Beside what the sampler reads, what only keeps books, and what would change nothing."""
    inert = {"_from_model_config": True, "transformers_version": "5", "pad_token_id": 0, "max_new_tokens": 64}
    neutral = {"num_beams": 1, "no_repeat_ngram_size": 0, "min_p": None, "typical_p": 1.0, "early_stopping": False}
    sampling(tmp_path, AUTOREGRESSIVE, DRAWS | inert | neutral)
    assert unread(tmp_path) == {}
    strange = {"min_p": 0.05, "num_beams": 4, "alg": "entropy", "steps": 128}
    sampling(tmp_path, AUTOREGRESSIVE, DRAWS | inert | neutral | strange)
    assert unread(tmp_path) == strange


def config_of(**own) -> q.ModelConfig:
    return q.ModelConfig(**SHAPES, num_key_value_heads=1, sampling=tuple(own.items()))


def test_what_is_asked_for_wins():
    config = config_of(remasking="entropy", temperature=0.6, top_k=20, top_p=0.9)
    every = dict(config.sampling)
    for given, left in (
        ({}, every),
        ({"gen_length": 8, "top_k": 5}, {k: v for k, v in every.items() if k != "top_k"}),
        ({"temperature": 0.9}, {k: v for k, v in every.items() if k != "temperature"}),
        ({"temperature": 0}, {"remasking": "entropy"}),
        ({"order": q.rules.Margin()}, {k: v for k, v in every.items() if k != "remasking"}),
        ({"draw": q.rules.Greedy()}, {"remasking": "entropy"}),
    ):
        assert in_force(config, given) == left, given
        assert q.settings_for(config, **given) == q.SamplerConfig(**left, **given)
    assert in_force(config_of(threshold=0.9), {"factor": 1.0}) == {}
    assert q.settings_for(config_of(), steps=4) == q.SamplerConfig(steps=4)
    for own, part in (({"thresold": 0.9}, "thresold"), ({"threshold": 2.0}, "threshold must be above 0")):
        with pytest.raises(q.InputError, match=part):
            q.settings_for(config_of(**own))


def parsed(*typed: str, program=generate):
    more = ["--prompt", "x"] if program is generate else []
    return cli.parse(program.Flags, ["--model", "m", *more, *typed])


def test_flags_win_over_the_models_own_settings():
    config = config_of(temperature=0.6, top_k=20)
    for typed, expected in (
        ([], {"temperature": 0.6, "top_k": 20}),
        (["--top-k", "5"], {"temperature": 0.6, "top_k": 5}),
        (["--temperature", "0", "--threshold", "0.8"], {"threshold": 0.8}),
    ):
        asked = parsed(*typed)
        flags.settings_of(asked)  # nothing of it is refused before the model is known
        assert flags.settings_of(asked, config) == q.SamplerConfig(**expected)
    assert flags.own_settings(parsed("--top-k", "5"), config) == {"temperature": 0.6}
    with pytest.raises(q.InputError, match="top_k chooses what to draw from"):
        flags.settings_of(parsed("--top-k", "5"), config_of())
    with pytest.raises(q.InputError, match="top_p must be"):
        flags.settings_of(parsed("--top-p", "5"))


def test_default_takes_a_setting_back_to_the_models_own():
    own = q.settings_for(config_of(temperature=0.6, top_k=20))
    greedy = flags.changed(own, {"temperature": "0"}, default=own)
    assert greedy == q.SamplerConfig()
    assert flags.changed(greedy, {"temperature": "default"}, default=own).temperature == 0.6
    with pytest.raises(q.InputError, match="top_k chooses"):  # his own
        flags.changed(q.SamplerConfig(temperature=1, top_k=3), {"temperature": "0"}, default=own)
    variants = compare.variants_of(own, "low_confidence,temperature=0,temperature=default+remasking=margin", [4], own)
    assert [(v.settings.temperature, v.settings.top_k) for v in variants] == [(0.6, 20), (0.0, None), (0.6, 20)]


@pytest.fixture(scope="module")
def autoregressive(start, tmp_path_factory) -> Path:
    """The small model as a plain Qwen3."""
    folder = tmp_path_factory.mktemp("ar") / "model"
    shutil.copytree(start, folder)
    config = json.loads((folder / "config.json").read_text()) | {"is_causal": True}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.slow
def test_programs_write_by_the_models_own_settings_and_say_so(autoregressive, capsys):
    def written(said, *typed):
        (autoregressive / "generation_config.json").write_text(json.dumps(said))
        generate.main(["--model", str(autoregressive), "--prompt", "To be", "--gen-length", "6", *typed])
        out = capsys.readouterr()
        return out.out, out.err

    own, err = written(DRAWS)
    assert "as the model's own settings say: temperature 0.6, top_k 20, top_p 0.95 (flags win)" in err
    greedy, err = written(DRAWS, "--temperature", "0")
    assert "own settings" not in err
    assert greedy != own
    model = q.load(autoregressive)
    settings = q.settings_for(model, gen_length=6)
    assert settings == q.SamplerConfig(gen_length=6, temperature=0.6, top_k=20, top_p=0.95)
    with pytest.raises(q.InputError, match="all samples are the same"):
        written({}, "--num-samples", "2")


def test_the_chat_of_an_autoregressive_model_changes_them(autoregressive, monkeypatch, capsys):
    import io
    import sys

    (autoregressive / "generation_config.json").write_text(json.dumps(DRAWS))
    lines = ["/set temperature=0", "/set", "/set temperature=default", "/set block_length=4", "/set"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines) + "\n"))
    chat.main(["--model", str(autoregressive), "--gen-length", "8"])
    err = capsys.readouterr().err
    assert "own settings say: temperature 0.6" in err
    assert "temperature=0.0 top_k=None" in err
    assert "temperature=0.6" in err
    assert "not trained for blocks of 4 under visibility block_causal" in err


def test_q_write_of_an_autoregressive_model_needs_no_mask_token(autoregressive):
    model, tokenizer = q.load(autoregressive), q.load_tokenizer(autoregressive)
    assert model.config.mask_token_id is None
    settings = q.SamplerConfig(gen_length=6)
    assert q.write(model, tokenizer, "To be", settings) == q.write(
        model, tokenizer, "To be", q.SamplerConfig(gen_length=6, mask_token_id=1050)
    )
