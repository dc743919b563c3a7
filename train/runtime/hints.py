"""Commands to type next, which run as they are pasted, from the same folder."""

import os
import shlex
import shutil
import sys
from pathlib import Path

from ..config.schema import Config


def command(program: str, *arguments: str | Path) -> str:
    """`python -m PROGRAM …`, quoted for a shell, by the Python that runs this."""
    python = shutil.which("python")
    same = python is not None and os.path.realpath(python) == os.path.realpath(sys.executable)
    # In an environment of its own Python is a link to the system's, which has not the packages.
    same &= python is not None and os.path.dirname(os.path.abspath(python)) == os.path.dirname(sys.executable)
    return shlex.join(["python" if same else sys.executable, "-m", program, *map(str, arguments)])


def sample(config: Config, output: Path) -> str:
    """A command that writes something with the run's newest weights, asked as it was taught."""
    if config.training.mode == "pretrain":
        return command("sample.generate", "--model", output, "--prompt", "Once upon a time")
    if config.dataset.template == "chat":
        return command("sample.generate", "--model", output, "--chat", "--prompt", "Who are you?")
    return command("sample.generate", "--model", output, "--prompt", "User: Who are you?\n\nAssistant:")
