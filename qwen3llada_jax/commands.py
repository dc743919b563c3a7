"""The command `qwen3llada`: its subcommands, and how a program is named to whoever must type it.

In a checkout the programs are the folders `train`, `sample` and `converters`, which `python -m train.run` runs too; an
installed wheel has them inside this package. The command finds them in both as parts of this package, so no `train.py`
of a user's own folder comes before them.
"""

import re
import sys
from pathlib import Path
from typing import NamedTuple

NAME = "qwen3llada"
PACKAGE = Path(__file__).parent
_ROOMS = ("train", "sample", "converters")
IS_CHECKOUT = not (PACKAGE / "train").is_dir() and all((PACKAGE.parent / room).is_dir() for room in _ROOMS)


class Command(NamedTuple):
    """A subcommand: the module that it runs, a line of help, arguments that are always given, and `cli.run`'s flag."""

    module: str
    summary: str
    fixed: tuple[str, ...] = ()
    leaves_at_once: bool = False


COMMANDS = {
    "import": Command("converters.from_hf", "make a model folder of a Qwen3 checkpoint, from a folder or the hub"),
    "train": Command("train.run", "adapt a model to masked diffusion on text (or what --mode and --config say)"),
    "sft": Command("train.run", "teach an adapted model to answer (train --mode sft)", ("--mode", "sft")),
    "plan": Command("train.plan", "say whether a training fits a machine, and what it costs, without the machine"),
    "report": Command("train.report", "draw the losses of runs, as a picture and a page"),
    "generate": Command("sample.generate", "write text by unmasking", leaves_at_once=True),
    "chat": Command("sample.chat", "talk with a model"),
    "serve": Command("sample.serve", "serve a model to OpenAI's clients, and a page that shows how it writes"),
    "compare": Command("sample.compare", "compare sampling rules on questions with answers", leaves_at_once=True),
    "evaluate": Command(
        "sample.evaluate", "measure how likely a model finds texts, or how it does in tasks", leaves_at_once=True
    ),
    "export": Command("converters.to_hf", "make a Hugging Face folder of a model folder or a run"),
    "analyze": Command("converters.analyze", "list the tensors of a checkpoint"),
}

_WORDS = {c.module + "".join(f" {word}" for word in c.fixed): f"{NAME} {name}" for name, c in COMMANDS.items()}
_WORDS["train.run --mode pretrain"] = f"{NAME} train"
_PROGRAM = re.compile(r"(?:\bpython3? -m )?\b(" + "|".join(map(re.escape, sorted(_WORDS, reverse=True))) + r")\b")


def as_typed(text: str) -> str:
    """Name the programs of a text as they were started: `python -m sample.generate`, or `qwen3llada generate`.

    An installed wheel has the command only.
    """
    if IS_CHECKOUT and not sys.argv[0].startswith(f"{NAME} "):
        return text
    return _PROGRAM.sub(lambda match: _WORDS[match[1]], text)


def bundled_configs() -> dict[str, Path]:
    """Find the training configurations that come with the project: {"sft": its file, …}.

    That of `make demo` is none: it names files of a checkout.
    """
    folder = (PACKAGE.parent if IS_CHECKOUT else PACKAGE) / "configs"
    return {file.stem: file for file in sorted(folder.glob("*.yaml")) if file.stem != "demo"}
