"""The `ensemble` command: options, help and exit codes. What a command does lies in `pipeline.commands`.

Nothing here imports torch, peft, transformers or dask: `ensemble --help` has to answer at once.
"""

from __future__ import annotations

import os
import sys
import traceback

import typer

from cache.errors import EnsembleError
from pipeline.commands import info, look, run, study, train
from pipeline.usage import Commands

INTERRUPTED = 130
GOES_ON = "interrupted; the same command goes on where it stopped"

# Must be set before torch loads OpenMP: threads that wait by spinning halve the speed of a machine that others use too.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

app = typer.Typer(
    name="ensemble",
    cls=Commands,
    help="Run frozen ECG foundation models once, then train LoRA heads and a gate on what they gave. "
    "All commands read params.yaml of the current folder; options override it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
study.add_to(app)
run.add_to(app)
train.add_to(app)
look.add_to(app)
info.add_to(app)


def _show_version(asked: bool) -> None:
    if asked:
        from stages.versions import package_versions

        typer.echo(f"ensemble {package_versions().get('ecg-ensemble', 'unknown')}")
        raise typer.Exit


@app.callback()
def _options(
    debug: bool = typer.Option(
        False, "--debug", help="Show the whole traceback of an error (works after a command too)."
    ),
    version: bool = typer.Option(
        False, "--version", callback=_show_version, is_eager=True, help="Show the package's version and exit."
    ),
) -> None:
    """Options before the command."""


def main() -> None:
    """Run the command line; a person's mistake is one line on stderr."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    try:
        app(arguments)
    except EnsembleError as error:
        _fail(str(error), error.exit_code, debug)
    except KeyboardInterrupt:
        _fail(GOES_ON, INTERRUPTED, debug)
    except SystemExit as ended:
        # Typer turns Ctrl-C into an exit of its own, by another way in every version.
        if isinstance(getattr(ended.__context__, "__cause__", None), KeyboardInterrupt):
            _fail(GOES_ON, INTERRUPTED, debug)
        raise
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader of our output has gone
        sys.exit(1)
    except Exception as error:  # noqa: BLE001 - a defect of ours: still one line, with the way to the rest
        _fail(f"unexpected {type(error).__name__}: {error} (run again with --debug for the traceback)", 1, debug)


def _fail(message: str, code: int, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    print("error: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
