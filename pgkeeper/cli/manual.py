"""The manual pages, made from the commands' own help: `python -m pgkeeper.cli.manual FOLDER`.

man-pages(7) says how they look.  Nothing in them is written twice, so nothing can disagree.
"""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path
from typing import Final

import click

from pgkeeper.cli import main

__all__ = ["pages"]

_NAME: Final = "pgkeeper"
#: A paragraph that begins with this line of click's is set as it stands.
_VERBATIM: Final = "\b"


def pages() -> dict[str, str]:
    """The pages by file name: `pgkeeper.1`, `pgkeeper-run.1`, ..."""
    root = click.Context(main, info_name=_NAME, **main.context_settings)
    found = {f"{_NAME}.1": _page(main, root)}
    for name in main.list_commands(root):
        command = main.get_command(root, name)
        assert command is not None  # noqa: S101 - it was just listed
        settings = command.context_settings
        context = click.Context(command, parent=root, info_name=name, **settings)
        found[f"{_NAME}-{name}.1"] = _page(command, context)
    return found


def _page(command: click.Command, context: click.Context) -> str:
    title = context.command_path.replace(" ", "-")
    usage = " ".join(command.collect_usage_pieces(context))
    lines = [
        f'.TH {title.upper()} 1 "" "pgkeeper" "User Commands"',
        ".SH NAME",
        f"{_text(title)} \\- {_text(_summary(command))}",
        ".SH SYNOPSIS",
        f"\\fB{_text(context.command_path)}\\fR {_text(usage)}",
        ".SH DESCRIPTION",
        *_description(command),
        ".SH OPTIONS",
        *_options(command, context),
    ]
    if isinstance(command, click.Group):
        lines.append(".SH COMMANDS")
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None  # noqa: S101 - it was just listed
            lines += [".TP", f"\\fB{_text(_NAME)}\\-{name}\\fR(1)", _text(_summary(child))]
        others = [f"{_NAME}-{name}" for name in command.list_commands(context)]
    else:
        others = [_NAME]
    lines += [".SH SEE ALSO", ",\n".join(f".BR {_text(other)} (1)" for other in others)]
    return "\n".join(lines) + "\n"


def _summary(command: click.Command) -> str:
    first = inspect.cleandoc(command.help or "").split("\n\n")[0]
    return " ".join(first.split()).rstrip(".")


def _description(command: click.Command) -> list[str]:
    """Paragraphs; those that are set as they stand have a heading of their own if they say so."""
    lines: list[str] = []
    for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
        first, _, rest = paragraph.partition("\n")
        if first != _VERBATIM:
            lines += [".PP", _text(" ".join(paragraph.split()))]
            continue
        heading, _, body = rest.partition("\n")
        if heading.endswith(":"):
            lines += [".SS", _text(heading.removesuffix(":"))]
        else:
            body = rest
        lines += [".nf", *(_text(line) for line in body.split("\n")), ".fi"]
    return lines


def _options(command: click.Command, context: click.Context) -> list[str]:
    lines: list[str] = []
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None:
            names, text = record
            lines += [".TP", f"\\fB{_text(names)}\\fR", _text(" ".join(text.split()))]
    return lines


def _text(text: str) -> str:
    """`text` without meaning to roff: groff_char(7)."""
    escaped = re.sub(r"\\", r"\\e", text).replace("-", r"\-")
    escaped = escaped.replace("'", r"\(aq").replace("`", r"\(ga").replace("~", r"\(ti")
    escaped = escaped.replace("^", r"\(ha")
    return f"\\&{escaped}" if escaped.startswith(".") else escaped


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for file_name, content in pages().items():
        (folder / file_name).write_text(content, encoding="utf-8")
