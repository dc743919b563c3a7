"""One grammar for every program: flags as dataclasses, what is refused, completions that a shell takes."""

import argparse
import dataclasses
import importlib
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

import qwen3llada_jax as q
import qwen3llada_jax.__main__ as command
from qwen3llada_jax import cli
from qwen3llada_jax.__main__ import main
from qwen3llada_jax.cli import flag
from qwen3llada_jax.process.huge_pages import SWITCH
from sample import compare, generate

PROGRAMS = (
    "converters.analyze", "converters.from_hf", "converters.to_hf", "sample.chat", "sample.compare", "sample.evaluate",
    "sample.generate", "sample.serve", "train.plan", "train.report", "train.run",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Group:
    """Group: of some."""

    first: int | None = flag("a number", None)
    shared: str = flag("a text", "a")


@dataclass(frozen=True, kw_only=True)
class Keys:
    keys: dict[str, str] = flag("", keys={"a.lr": "rate 5%", "a.name": "", "b.name": "", "b.max_steps": ""})


@dataclass(frozen=True, kw_only=True)
class Flags(Keys, Group):
    src: Path = flag("a path, 100%% of it")
    shared: float = flag("a number here", 0.5, names=("--shared", "--sh"))
    live: bool = flag("a switch", False)
    ends: bool | None = flag("a pair", None)
    asks: list[str] | None = flag("texts", None)
    kind: str | None = flag("one of two", None, choices=("one", "two"))
    stops: tuple[int, ...] | None = flag("ids", None)
    upper: Annotated[str, str.upper] = flag("what a function makes of it", "A")


def flags_of(name: str) -> type:
    return importlib.import_module(name).Flags


def shown(capsys, flags: type, *words: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        cli.parse(flags, words)
    assert stopped.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("", {}),
        ("--first 3 --sh 2 --live", {"first": 3, "shared": 2.0, "live": True}),
        ("--first=-3", {"first": -3}),
        ("--first -3", {"first": -3}),
        ("--ends", {"ends": True}),
        ("--no-ends", {"ends": False}),
        ("--no_ends", {"ends": False}),
        ("--asks a --asks=-b --asks --", None),
        ("--asks a --asks=--b", {"asks": ["a", "--b"]}),
        ("--kind two --stops 7,12 --upper b", {"kind": "two", "stops": (7, 12), "upper": "B"}),
        ("--a.lr 1 --max_steps=", {"keys": {"a.lr": "1", "b.max_steps": ""}}),
        ("--lr -x --b.max-steps 3", {"keys": {"a.lr": "-x", "b.max_steps": "3"}}),
    ],
)
def test_a_line_is_the_instance_that_it_says(words, expected):
    if expected is None:
        with pytest.raises(q.InputError, match="--asks needs a value"):
            cli.parse(Flags, ["--src", "s", *words.split()])
    else:
        assert cli.parse(Flags, ["--src", "s", *words.split()]) == Flags(src=Path("s"), **expected)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("", "the following arguments are required: --src (see --help)"),
        ("--src", "--src needs a value (one that begins with -- is written --src=--…)"),
        ("--src --live", "--src needs a value (one that begins with -- is written --src=--…)"),
        ("--src --lve", "unknown key 'lve'; did you mean 'live'? (as the value of --src: --src=--lve)"),
        ("--src --=1", "--src needs a value (one that begins with -- is written --src=--…)"),
        ("--src --qqqq", "--src needs a value (one that begins with -- is written --src=--…)"),
        ("--src a --=1", "unexpected '--=1': options are --key value (see --help)"),
        ("--src a -- b", "unexpected '--': options are --key value (see --help)"),
        ("--src a --src b", "--src is given twice (a and b); leave one of the two out"),
        ("--src a --sh 1 --shared 2", "--shared is given twice (1 and 2); leave one of the two out"),
        ("--src a --lr 1 --a.lr 2", "--a.lr is given twice (1 and 2); leave one of the two out"),
        ("--src a --name x", "key 'name' is ambiguous: a.name or b.name"),
        ("--src a --live=1", "--live=1: --live takes no value"),
        ("--src a b", "unexpected 'b': options are --key value (see --help)"),
        ("--src a --first 1_6", "argument --first: invalid whole value: '1_6' (see --help)"),
        ("--src a --stops x", "argument --stops: must be ids, as 7,12, not 'x' (see --help)"),
        ("--src a --fir 1", "unknown key 'fir'; did you mean 'first'?"),
    ],
)
def test_what_is_refused_is_one_line(words, line):
    with pytest.raises(q.InputError) as caught:
        cli.parse(Flags, words.split())
    assert str(caught.value) == line


def test_no_text_is_no_path():
    """As a path it would be the folder that one is in."""
    for text in ("", " "):
        with pytest.raises(q.InputError, match="--src: must name a file or a folder, not ''"):
            cli.parse(Flags, [f"--src={text}"])


def test_no_text_is_no_place():
    for program in ("sample.generate", "converters.analyze"):
        flag = "--model" if program == "sample.generate" else "--src"
        with pytest.raises(q.InputError, match=f"{flag}: must name a file or a folder, not ''"):
            cli.parse(flags_of(program), [f"{flag}="])


def test_a_key_that_lacks_its_value_is_told_how_to_write_one_with_dashes():
    for program in ("train.run", "train.plan"):
        with pytest.raises(q.InputError) as caught:
            cli.parse(flags_of(program), ["--prompts", "--zz"])
        assert str(caught.value) == "--prompts needs a value (one that begins with -- is written --prompts=--…)"


def test_words_behind_two_dashes_are_no_options():
    flags = flags_of("train.report")
    assert cli.parse(flags, ["--out", "l.png", "--", "--out", "-x", "a"]).runs == [Path("--out"), Path("-x"), Path("a")]
    assert cli.parse(flags, ["a", "--", "--oot=1"]).runs == [Path("a"), Path("--oot=1")]
    with pytest.raises(q.InputError, match=r"^unexpected '--=1': options are --key value"):
        cli.parse(flags, ["a", "--=1"])


def test_a_program_is_called_as_its_file_is(monkeypatch):
    """Since Python 3.14 argparse would say `python3 -m sample.generate`, of which no shell's function can be made."""
    monkeypatch.setattr(sys, "argv", ["/somewhere/generate.py"])
    monkeypatch.setattr(argparse, "_prog_name", lambda *_: "python3 -m sample.generate", raising=False)
    assert cli.Parser(Flags).prog == "generate.py"


def test_thinking_without_a_chat_is_refused_before_a_model_is_opened(tmp_path):
    (tmp_path / "asks.jsonl").write_text('{"prompt": "x"}\n')
    for program, words in ((generate, ["--prompt", "x"]), (compare, ["--data", str(tmp_path / "asks.jsonl")])):
        with pytest.raises(q.InputError, match=r"^--enable-thinking belongs to a chat; add --chat$"):
            program.main(["--model", "none", "--enable-thinking", *words])


def test_errors_of_rules_name_the_flag_that_gave_them():
    with pytest.raises(q.InputError, match=r"^--rule no\.py: there is no such file$"):
        generate.main(["--model", "none", "--prompt", "x", "--rule", "no.py:X"])
    with pytest.raises(q.InputError, match=r"^--rules: no\.py: there is no such file$"):
        compare.main(["--model", "none", "--data", "x.jsonl", "--rules", "no.py:X"])


def test_help_has_groups_and_every_flag(capsys):
    text = shown(capsys, Flags, "--src", "x", "--help")
    assert "group:\n  of some\n\n  --first N" in text
    assert text.index("--src SRC") < text.index("group:") < text.index("\na:\n") < text.index("\nb:\n")
    assert "a number here" in text
    assert "a path, 100% of it" in text
    assert "rate 5%" in text
    assert "\x1b" not in text


@given(text=st.text(min_size=1).filter(lambda t: "\0" not in t))
@settings(max_examples=100, deadline=None)
def test_any_text_arrives_whole(text):
    assert cli.parse(Flags, ["--src=s", f"--asks={text}", f"--lr={text}"]).asks == [text]
    if not text.startswith("--"):
        found = cli.parse(Flags, ["--src", "s", "--asks", text, "--lr", text])
        assert (found.asks, found.keys) == ([text], {"a.lr": text})


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_program_declares_a_frozen_dataclass(program, capsys):
    flags = flags_of(program)
    assert flags.__dataclass_params__.frozen
    options = cli.Parser(flags)._option_string_actions
    text = shown(capsys, flags, "--help")
    assert f"\n  {SWITCH}=0 " in text
    for field in dataclasses.fields(flags):
        keys = field.metadata["keys"]
        names = [f"--{key}" for key in keys] if keys else list(field.metadata["names"])
        if field.metadata["positional"]:
            assert f"\n  {field.name} " in text
        for name in names or ([f"--{field.name.replace('_', '-')}"] if not field.metadata["positional"] else []):
            assert name in options
            assert f"{name} " in text or f"{name}\n" in text or f"{name}," in text


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_every_program_prints_what_a_shell_takes(program, shell, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [f"/somewhere/{program.split('.')[1]}.py"])
    script = shown(capsys, flags_of(program), "--print-completion", shell)
    name = program.split(".")[1]
    assert f"_shtab_{name}" in script
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=script, text=True, check=True)


COMPLETE = """
COMP_WORDS=({words} "$1"); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); COMPREPLY=()
_shtab_{name} {name} "$1" "${{COMP_WORDS[$COMP_CWORD - 1]}}"
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


def completed(script: str, words: str, word: str) -> set[str]:
    """What bash offers for a word behind others."""
    code = script + COMPLETE.format(words=words, name=words.split()[0])
    done = subprocess.run(["bash", "-c", code, "bash", word], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
def test_bash_completes_flags_choices_and_keys(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["generate"])
    script = shown(capsys, flags_of("sample.generate"), "--print-completion", "bash")
    assert completed(script, "generate", "--gen") == {"--gen-length"}
    assert completed(script, "generate", "--no-s") == {"--no-speculate", "--no-stop-at-eos"}
    assert completed(script, "generate --visibility", "block") == {"block_bias", "block_causal"}
    script = cli.completions("both", {"train": flags_of("train.run"), "report": flags_of("train.report")}, "bash")
    assert completed(script, "both", "") == {"train", "report"}
    assert completed(script, "both train", "--training.lr") == {"--training.lr"}
    assert completed(script, "both report", "--o") == {"--out"}


@pytest.mark.parametrize("words", [(), ("fish",), ("bash", "zsh")])
def test_the_command_completes_for_shells_that_it_knows(words, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["qwen3llada", "--print-completion", *words])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert "--print-completion takes bash or zsh, not" in capsys.readouterr().err


@pytest.mark.parametrize("words", [("--print-completion=bash",), ("--print_completion", "bash")])
def test_the_commands_completion_is_asked_for_as_any_flag_is(words, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["qwen3llada", *words])
    monkeypatch.setattr(command, "_program", importlib.import_module)  # as part of the package it would stay there
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 0
    assert "_shtab_qwen3llada" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "words", "word", "expected"),
    [
        pytest.param("converters.to_hf", "to_hf", "--dt", "--dtype", marks=pytest.mark.soak),
        ("qwen3llada_jax", "qwen3llada sft", "--dry", "--dry-run"),
        pytest.param("qwen3llada_jax", "qwen3llada", "exp", "export", marks=pytest.mark.soak),
    ],
)
def test_programs_as_typed_print_completions(program, words, word, expected):
    done = subprocess.run(
        [sys.executable, "-m", program, "--print-completion", "bash"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert completed(done.stdout, words, word) == {expected}
    assert not done.stderr
