"""K7: what is typed arrives as it is typed, by the type that its key declares; numbers in YAML stay as written."""

import dataclasses
import typing

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import qwen3llada_jax as q
from qwen3llada_jax import cli
from train import run
from train.config.parse import _known, as_yaml, read_config
from train.config.schema import Config, SourceConfig, flat
from train.config.values import from_text

NEEDED = [("model.base_model_path", "m"), ("dataset.name", "d")]
NEEDED_BY = {"dataset.columns": [("training.mode", "sft")]}  # which has no effect on pretraining
OPTIONAL_TEXTS = [name for name, f in _known().items() if f.type == (str | None)]
TEXTS = [name for name, f in _known().items() if f.type in (str, str | None)]


def given_flag(name: str, text: str):
    return flat(read_config(None, [*(n for n in NEEDED if n[0] != name), (name, text)]))[name]


@pytest.mark.parametrize(
    "text",
    ["2024_01", "0x10", "0b11", "0o17", "1e3", "010", "1:30", "runs/a #2", "on", "yes", "No", "true", "ROMEO:",
     "a: b", "- a", "[a]", "{a: 1}", "'x'", '"x"', "2024-01-01", "train[:90%]", " a ", "*a", "&a", "!x", "%a", "@a",
     "a\nb", ".5", "1_000", "=", "<<", "?", "|", "ünï"],
)  # fmt: skip
def test_k7_paths_names_splits_and_prompts_are_what_they_look_like(text):
    for name in ("project.output_dir", "dataset.name", "dataset.split", "project.log_dir"):
        assert given_flag(name, text) == text
    assert given_flag("evaluation.prompts", text) == [text]
    typed = ["--base_model_path=m", "--dataset.name=d", f"--output_dir={text}"]
    assert cli.parse(run.Flags, typed).read().project.output_dir == text


@given(text=st.text(min_size=1).filter(lambda t: t.strip() and "\0" not in t))
@settings(max_examples=200, deadline=None)
def test_k7_any_text_arrives_whole(text):
    assert from_text("project.output_dir", text, str) == text
    if not text.strip().startswith("["):
        assert from_text("evaluation.prompts", text, tuple[str, ...]) == (text,)
    if text.strip().lower() not in ("null", "none", "~"):
        assert from_text("dataset.config", text, str | None) == text


@pytest.mark.parametrize("name", OPTIONAL_TEXTS)
@pytest.mark.parametrize("text", ["null", "none", "None", "~"])
def test_k7_an_optional_key_can_be_set_to_nothing(name, text):
    needed = {"model.base_model_path": [("model.qwen3llada_model_path", "x")]}.get(name, [])
    if name == "dataset.name":
        needed = [("dataset.mixture", "[{name: a}]")]
    overrides = [*(n for n in NEEDED if n[0] != name), *needed, (name, text)]
    assert flat(read_config(None, overrides))[name] is None


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("evaluation.prompts", '["ROMEO:", "a, b #c"]', ["ROMEO:", "a, b #c"]),
        ("evaluation.prompts", "['a', '1']", ["a", "1"]),
        ("evaluation.prompts", "[]", []),
        ("evaluation.prompts", "[Enter HAMLET, reading]", ["[Enter HAMLET, reading]"]),
        ("evaluation.prompts", "null", ["null"]),
        ("training.freeze", "[embed_tokens, layers.0-11.*]", ["embed_tokens", "layers.0-11.*"]),
        ("training.freeze", "embed_tokens", ["embed_tokens"]),
        ("training.freeze", "embed_tokens, layers.0", ["embed_tokens", "layers.0"]),
        ("training.freeze", '["a,b"]', ["a,b"]),
        ("evaluation.prompts", "a,b", ["a,b"]),
        ("evaluation.prompts", "['tis the season]", ["['tis the season]"]),
        ("training.lr", "1_000.5", 1000.5),
        ("model.mask_token_id", "1_6", "1_6"),
        ("optim.betas", "[0.9, 1e-1]", [0.9, 0.1]),
        ("optim.betas", "0.9,0.95", [0.9, 0.95]),
        ("optim.betas", "null", None),
        ("training.lr", "1e-4", 1e-4),
        ("training.lr", "3", 3.0),
        ("training.max_steps", "1_000", 1000),
        ("training.max_steps", "010", 10),
        ("training.bf16", "True", True),
        ("training.bf16", "off", False),
        ("training.block_attention.enabled", "null", None),
        ("model.mask_token_id", "151669", 151669),
        ("model.mask_token_id", "auto", "auto"),
    ],
)  # fmt: skip
def test_k7_by_the_type_that_the_key_declares(name, text, expected):
    assert given_flag(name, text) == expected


@pytest.mark.parametrize(
    ("name", "text", "part"),
    [
        ("training.max_steps", "0x10", "must be a whole number or nothing, not '0x10'"),
        ("training.max_steps", "1_6", "must be a whole number or nothing"),
        ("training.lr", "1_0", "must be a number, not '1_0'"),
        ("evaluation.prompts", "['a', 'b]", "begins like a list but is none"),
        ("training.max_steps", "8.0", "must be a whole number or nothing"),
        ("training.lr", "nan", "must be a number, not 'nan'"),
        ("training.bf16", "1", "must be true or false, not '1'"),
        ("training.batch_size", "null", "must be a whole number, not 'null'"),
        ("optim.betas", "[0.9, a]", "optim.betas[1] must be a number, not 'a'"),
        ("evaluation.prompts", '["a", "b"', 'begins like a list but is none'),
        ("evaluation.prompts", '["a", ["b"]]', "must be a list of texts"),
        ("evaluation.prompts", '["a", ""]', "evaluation.prompts[1] must not be ''"),
        ("project.output_dir", "", "must not be ''"),
        ("dataset.mixture", "nope", "must be a list of {name: …, weight: …"),
        ("dataset.mixture", "[{nmae: a}]", "unknown key 'nmae'; did you mean 'name'?"),
        ("project.output_dir", "a\0b", "must not be"),
    ],
)  # fmt: skip
def test_k7_what_is_not_of_that_type_is_one_line(name, text, part):
    with pytest.raises(q.InputError) as caught:
        given_flag(name, text)
    assert part in str(caught.value)


def test_k7_a_mixture_on_the_command_line_keeps_its_words():
    """A relative: what stands within the braces was typed by YAML too."""
    text = "[{name: 2024_01, weight: 2, split: 2024-01-01}, {name: 'runs/a #2', config: 0x10}]"
    found = read_config(None, [("base_model_path", "m"), ("mixture", text)]).dataset.mixture
    assert found == (SourceConfig("2024_01", 2.0, None, "2024-01-01"), SourceConfig("runs/a #2", 1.0, "0x10"))


def test_k7_a_number_in_a_file_is_kept_as_it_is_written(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text(
        "project: {output_dir: 2024_01, log_dir: 2024-01-02, seed: 0x10}\n"
        "model: {base_model_path: 1e3, mask_token_id: 151_669}\n"
        "dataset: {name: 0123, config: 1.10, split: 1:30, mixture: null}\n"
        "training: {lr: 1e-3, max_steps: 1_000, bf16: yes, freeze: []}\n"
        "evaluation: {prompts: [1, 2024_01, ROMEO], eval_split: 007}\n".replace("mixture: null", "num_proc: null")
    )
    config = read_config(file)
    assert (config.project.output_dir, config.project.log_dir, config.project.seed) == ("2024_01", "2024-01-02", 16)
    assert (config.model.base_model_path, config.model.mask_token_id) == ("1e3", 151_669)
    assert (config.dataset.name, config.dataset.config, config.dataset.split) == ("0123", "1.10", "1:30")
    assert (config.training.lr, config.training.max_steps, config.training.bf16) == (1e-3, 1000, True)
    assert config.evaluation.prompts == ("1", "2024_01", "ROMEO")
    assert config.evaluation.eval_split == "007"
    (tmp_path / "b.yaml").write_text(as_yaml(config))
    assert read_config(tmp_path / "b.yaml") == config


def test_k7_a_truth_value_where_a_text_belongs_is_refused(tmp_path):
    file = tmp_path / "a.yaml"
    for name in ("output_dir", "log_dir"):
        file.write_text(f"project: {{{name}: no}}\n")
        with pytest.raises(q.InputError, match=rf"project.{name} must be text.* not False.* write \"no\" for the word"):
            read_config(file)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("model: {mask_token_id: 010}", 10), ("model: {mask_token_id: 089}", "089"), ("training: {max_steps: 010}", 10),
        ("training: {max_steps: 089}", 89), ("training: {max_steps: 0x10}", 16), ("training: {lr: 010}", 10.0),
        ("training: {max_steps: 1:30}", "must be a whole number or nothing, not '1:30'"),
        ("training: {lr: 1:30}", "must be a number, not '1:30'"), ("training: {lr: 1:30.5}", "not '1:30.5'"),
        ("training: {max_steps: 1_6}", "not '1_6'"), ("training: {lr: 1_0}", "must be a number, not '1_0'"),
        ("project: {output_dir: no}", 'must be text, not False; in YAML no is a truth value: write "no" for the word'),
        ("evaluation: {prompts: [yes]}", '[0] must be text, not True; in YAML yes is a truth value: write "yes"'),
        ("evaluation: {prompts: yes}", 'must be a list of texts, not True; in YAML yes is a truth value'),
        ("evaluation: {prompts: [{ROMEO: }]}", "[0] must be text, not {'ROMEO': None}; in YAML a colon"),
    ],
)  # fmt: skip
def test_k7_what_yaml_makes_another_thing_of(tmp_path, line, expected):
    """Octals, minutes and seconds, digits with gaps, truth values, keys: YAML sees them where nobody wrote them."""
    file = tmp_path / "a.yaml"
    file.write_text(line + "\n")
    section, name = line.replace("{", "").split(": ")[:2]
    needed = NEEDED[:]
    if isinstance(expected, str) and " " in expected:
        with pytest.raises(q.InputError) as caught:
            read_config(file, needed)
        assert expected in str(caught.value)
    else:
        assert flat(read_config(file, needed))[f"{section}.{name}"] == expected


@pytest.mark.parametrize("name", TEXTS)
def test_k7_every_key_of_text_says_what_it_was_told(tmp_path, name):
    """Through a flag, a file and the file that a run writes."""
    value = "0x10_2024"
    overrides = [*(n for n in NEEDED if n[0] != name), *NEEDED_BY.get(name.rpartition(".")[0], ()), (name, value)]
    tree: dict = {}
    for key, text in overrides:
        *sections, last = key.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[last] = text
    try:
        config = read_config(None, overrides)
    except q.InputError as error:  # one of a few known words
        assert any(part in str(error) for part in ("0x10_2024", "go together", "has no effect"))  # noqa: PT017
        return
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(tree))
    (tmp_path / "b.yaml").write_text(as_yaml(config))
    assert flat(config)[name] == value
    assert read_config(tmp_path / "a.yaml") == read_config(tmp_path / "b.yaml") == config


def test_every_declared_type_is_one_that_flags_know():
    for name, field in _known().items():
        kinds = typing.get_args(field.type) or (field.type,)
        for kind in kinds:
            known = kind in (str, int, float, bool, type(None), Ellipsis) or dataclasses.is_dataclass(kind)
            assert known or typing.get_origin(kind) is tuple, name
    assert isinstance(Config(), Config)


def test_k7_what_is_to_be_shown_is_taken_from_its_own_words():
    for words, (only, rows, keys) in {
        "--mode sft --show_rows 2 --dry-run": (True, 2, {"training.mode": "sft"}),
        "--show-rows=3 --lr=1": (False, 3, {"training.lr": "1"}),
        "--evaluation.prompts=--dry-run --dataset.text_field a": (
            False, 0, {"evaluation.prompts": "--dry-run", "dataset.text_field": "a"},
        ),
    }.items():  # fmt: skip
        assert cli.parse(run.Flags, words.split()) == run.Flags(dry_run=only, show_rows=rows, keys=keys)
    for value in ("--dry-run", "--show-rows", "--dry_run"):
        with pytest.raises(q.InputError, match="prompts needs a value"):
            cli.parse(run.Flags, ["--evaluation.prompts", value])


@pytest.mark.parametrize(
    ("words", "part"),
    [("--show-rows 2 --show-rows 3", "--show-rows is given twice"), ("--show-rows 2 --show_rows=2", "given twice"),
     ("--dry-run=1", "--dry-run takes no value"), ("--dry-run=", "no value"), ("--show-rows", "needs a value"),
     ("--show-rows --dry-run", "needs a value"), ("--show-rows=0", "give the number of rows"),
     ("--show-rows 1_0", "give the number of rows")],
)  # fmt: skip
def test_k7_a_look_that_means_nothing_is_refused(words, part):
    with pytest.raises(q.InputError, match=part):
        cli.parse(run.Flags, words.split())
