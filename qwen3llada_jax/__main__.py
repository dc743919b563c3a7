"""`qwen3llada COMMAND …`, and the same as `python -m qwen3llada_jax COMMAND …`."""

import importlib
import shlex
import sys
from collections.abc import Mapping, Sequence
from types import ModuleType

import qwen3llada_jax
from qwen3llada_jax import cli
from qwen3llada_jax.commands import COMMANDS, NAME
from qwen3llada_jax.errors import InputError


def main() -> None:
    """Run the program of a command, as `python -m` runs it."""
    typed = sys.argv[1:]
    name, rest = (typed[0], typed[1:]) if typed else ("--help", [])
    option, equals, value = name.partition("=")
    if option.replace("_", "-") == "--print-completion":
        cli.run(lambda: _print_completion(*([value] if equals else []), *rest))
    if name not in COMMANDS:
        cli.run(lambda: _help(name))
    command = COMMANDS[name]
    sys.argv = [f"{NAME} {name}", *rest]

    def run() -> None:
        program = _program(command.module)
        if command.fixed:
            sys.argv += _fixed(name, command.fixed, cli.parse(program.Flags, rest).keys)
        program.main()

    cli.run(run, leaves_at_once=command.leaves_at_once)


def _program(module: str) -> ModuleType:
    return importlib.import_module(f"{qwen3llada_jax.__name__}.{module}")


def _print_completion(*shells: str) -> None:
    if shells not in (("bash",), ("zsh",)):
        raise InputError(f"{NAME} --print-completion takes bash or zsh, not {' '.join(shells) or 'nothing'}")
    print(cli.completions(NAME, {name: _program(c.module).Flags for name, c in COMMANDS.items()}, shells[0]))


def _fixed(name: str, fixed: Sequence[str], keys: Mapping[str, str]) -> Sequence[str]:
    """The arguments that a command always gives, unless the given keys say them; refuse others in their place."""
    flag, its = fixed
    given = keys.get(f"training.{flag[2:]}")
    if given not in (None, its):
        raise InputError(f"{NAME} {name} is {NAME} train {flag} {its}, not {flag} {shlex.quote(given)}; leave it out")
    return fixed if given is None else ()


def _help(name: str) -> None:
    if name not in ("--help", "-h"):
        raise InputError(f"no command {name!r}{cli.nearest(name, list(COMMANDS))} ({NAME} --help lists them)")
    print(f"usage: {NAME} COMMAND …\n\nQwen3 checkpoints as masked diffusion language models.\n\ncommands:")
    for command, (_, summary, *_) in COMMANDS.items():
        print(f"  {command:10}{summary}")
    print(
        f"\n{NAME} COMMAND --help tells the flags of one, {NAME} --print-completion bash (zsh) what a shell completes."
    )


if __name__ == "__main__":
    main()
