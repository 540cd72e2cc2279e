"""What a person typed wrong, as one line: Typer's own errors come in a box of several lines otherwise."""

from __future__ import annotations

import re
from typing import Any

import typer
from typer.core import TyperGroup

from cache.errors import UsageError

# Typer brings its own copy of Click in some versions and imports Click in others: the class is found by its name.
ClickError: type[Exception] = next(cls for cls in typer.BadParameter.__mro__ if cls.__name__ == "ClickException")
HELP = "NoArgsIsHelpError"
"""Raised to show the help where a group is called without a command."""


class Commands(TyperGroup):
    """The commands; what does not fit them is raised as `UsageError`."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        """Read the options before the command."""
        return _in_one_line(super().make_context, *args, **kwargs)

    def invoke(self, ctx: Any) -> Any:
        """Read the command's arguments and run it."""
        return _in_one_line(super().invoke, ctx)


def _in_one_line(call: Any, *args: Any, **kwargs: Any) -> Any:
    try:
        return call(*args, **kwargs)
    except ClickError as error:
        if type(error).__name__ == HELP:
            raise
        raise UsageError(usage_words(error)) from error


def usage_words(error: Any) -> str:
    """Return the line that names the option or argument, what is wrong with it, and where its help is."""
    words, parameter = str(error.format_message()).strip().removesuffix("."), getattr(error, "param", None)
    if parameter is not None and words.startswith("Invalid value"):
        words = f"{_name(parameter)}: {str(error.message).strip().removesuffix('.')}"
        words = words.replace(": Input should", ": it must")
    else:
        words = words[:1].lower() + words[1:]
        words = re.sub(r"\.? \(?(?:Did you mean|Possible options:) (.*?)\??\)?$", r"; did you mean \1?", words)
    context = getattr(error, "ctx", None)
    names: list[str] = []
    while context is not None and context.parent is not None:
        names.insert(0, context.info_name)
        context = context.parent
    return f"{words}{' ' if words.endswith('?') else '; '}`{' '.join(['ensemble', *names])} --help` has more"


def _name(parameter: Any) -> str:
    """Return an option as it is typed, or an argument's name."""
    return str(max(parameter.opts, key=len) if parameter.param_type_name == "option" else parameter.name.upper())
