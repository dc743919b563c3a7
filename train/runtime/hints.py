"""Commands to type next, which run as they are pasted, from the same folder."""

import os
import shlex
import shutil
import sys
from pathlib import Path

from qwen3llada_jax import commands

from ..config.schema import Config


def command(program: str, *arguments: str | Path) -> str:
    """`python -m PROGRAM …` or `qwen3llada COMMAND …`, quoted for a shell, by the Python that runs this."""
    words = commands.as_typed(program).split()
    if words[0] != commands.NAME:
        words = [_typed("python") or sys.executable, "-m", *words]
    elif not _typed(commands.NAME):
        words = [_typed("python") or sys.executable, "-m", "qwen3llada_jax", *words[1:]]
    return shlex.join([*words, *map(str, arguments)])


def _typed(name: str) -> str | None:
    """The name, if a shell finds under it what lies beside the Python that runs this.

    In an environment of its own Python is a link to the system's, which has not the packages.
    """
    found = shutil.which(name)
    if found is None or os.path.dirname(os.path.abspath(found)) != os.path.dirname(sys.executable):
        return None
    return name if name != "python" or os.path.samefile(found, sys.executable) else None


def sample(config: Config, output: Path) -> str:
    """A command that writes something with the run's newest weights, asked as it was taught."""
    if not config.learns_answers:
        return command("sample.generate", "--model", output, "--prompt", "Once upon a time")
    if config.dataset.template == "chat":
        return command("sample.generate", "--model", output, "--chat", "--prompt", "Who are you?")
    return command("sample.generate", "--model", output, "--prompt", "User: Who are you?\n\nAssistant:")
