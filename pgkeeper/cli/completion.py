"""`pgkeeper completion`: what makes a shell complete our commands and options."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

__all__ = ["command"]

_SHELLS = ("bash", "zsh", "fish")
_NAME = "pgkeeper"
#: What the scripts set when they ask us; click makes it from the program's name.
_VARIABLE = "_PGKEEPER_COMPLETE"


@click.command("completion")
@click.argument("shell", type=click.Choice(_SHELLS))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print a script that makes SHELL complete commands, options and files.

    \b
    Examples:
      eval "$(pgkeeper completion bash)"    # in ~/.bashrc; likewise zsh
      pgkeeper completion bash > /etc/bash_completion.d/pgkeeper
      pgkeeper completion fish > ~/.config/fish/completions/pgkeeper.fish
    """
    made = get_completion_class(shell)
    assert made is not None  # noqa: S101 - click has all of _SHELLS
    click.echo(made(ctx.find_root().command, {}, _NAME, _VARIABLE).source())
