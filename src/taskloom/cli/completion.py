"""`task --print_completion bash`: a completion script, made by shtab from the same parsers that read the arguments."""

from __future__ import annotations

from collections.abc import Sequence

from jsonargparse import ArgumentParser

from taskloom.cli.commands import COMMANDS
from taskloom.cli.root import Root
from taskloom.core.errors import ConfigError, explain, missing_package

SHELLS = ("bash", "zsh", "tcsh")


def print_completion(args: Sequence[str]) -> None:
    """Print the script for a shell.

    Raises:
        ConfigError: no shell, or an unknown one, is named.
        MissingPackageError: shtab is not installed.
    """
    if len(args) != 1 or args[0] not in SHELLS:
        raise ConfigError(
            [
                "flag --print_completion: "
                + explain(
                    "The shell is not named",
                    got=" ".join(args),
                    fix=f"task --print_completion {SHELLS[0]}; known are {', '.join(SHELLS)}",
                )
            ]
        )
    try:
        import shtab  # noqa: F401
    except ImportError as error:
        raise missing_package("--print_completion", "shtab", "completion") from error
    parser = ArgumentParser(prog="task", print_config=None)
    commands = parser.add_subcommands()
    for name, command in COMMANDS.items():
        below = (
            Root().parser(f"task {name}") if command.stage else ArgumentParser(prog=f"task {name}", print_config=None)
        )
        commands.add_subcommand(name, below, help=command.summary)
    print(parser.get_completion_script(f"shtab-{args[0]}"))
