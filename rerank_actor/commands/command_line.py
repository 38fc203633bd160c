"""What the commands share: flags made from a model's fields, unknown ones refused, errors turned into exit codes."""

import argparse
import atexit
import contextlib
import itertools
import logging
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Container, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, NoReturn, Union, get_args, get_origin

import rerank_actor
from rerank_actor.errors import JobError, OutputConflictError, RerankError, RunInterruptedError, describe_cause
from rerank_actor.job_file import Settings, suggest
from rerank_actor.progress import say
from rerank_actor.runtime.connection import is_pipeline_running

CONSOLE_SCRIPT = "rerank"
HELP_WIDTH = 80
CHOICES_WIDTH = 60
EXAMPLES = "examples:"
SAME_FLAGS = (
    ("--allow-incomplete", "--partial"),
    ("--reselect", "--overwrite"),
)  # one thing; a command has one of them
SILENT_SETTINGS = frozenset({"pairs_per_second"})  # where --tokens-per-second says the same
EXIT_FAILED, EXIT_BAD_JOB, EXIT_REFUSED = 1, 2, 3


class HelpFormatter(argparse.HelpFormatter):
    """Help in 80 columns at most, in which examples keep their lines."""

    def __init__(self, prog: str, **arguments: Any) -> None:
        super().__init__(prog, **{**arguments, "width": HELP_WIDTH, "max_help_position": 26})

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if text.startswith(EXAMPLES) else super()._fill_text(text, width, indent)


class Parser(argparse.ArgumentParser):
    """An argument parser that refuses unknown flags with the nearest right one, in one line.

    Args:
        command: name of the command.
        description: what it does.
        examples: command lines behind the command's name, for the end of its help.
    """

    def __init__(self, command: str, description: str, *examples: str) -> None:
        program = name_program(command)
        lines = "".join(f"\n  {program} {example}" for example in examples)
        super().__init__(
            prog=program,
            description=description,
            allow_abbrev=False,
            formatter_class=HelpFormatter,
            epilog=EXAMPLES + lines if examples else None,
        )

    def format_help(self) -> str:
        """Return the help, whose usage names what has to be given and leaves the other flags to the list."""
        words = [self.prog]
        for action in self._actions:
            if not action.option_strings:
                name = str(action.metavar or action.dest)
                words.append(name if action.required else f"[{name}]")
            elif action.required:
                words.append(f"{action.option_strings[0]} {action.dest.upper()}")
        self.usage = " ".join([*words, "[flags]"]).replace("%", "%%")
        return super().format_help()

    def parse(self, arguments: Sequence[str] | None = None) -> argparse.Namespace:
        """Parse a command line; exit with 2 where it does not fit."""
        flags = [option for action in self._actions for option in action.option_strings]
        arguments = [_take_other_name(word, flags) for word in (sys.argv[1:] if arguments is None else arguments)]
        flags_given, unknown = self.parse_known_args(arguments)
        self._refuse_names_apart(arguments, flags_given, unknown)
        if unknown:
            hint = suggest(unknown[0].split("=")[0], flags) if unknown[0].startswith("-") else ""
            self.error(f"unknown flag or argument {unknown[0].split('=')[0]}{hint}")
        return flags_given

    def _refuse_names_apart(
        self, arguments: Sequence[str], flags_given: argparse.Namespace, unknown: Sequence[str]
    ) -> None:
        """Refuse `--keep-columns a b`, whose second name argparse would take for the job file."""
        loose = {*unknown[:1], getattr(flags_given, "job_file", None)}
        for action in self._actions:
            for flag in {*action.option_strings}.intersection(arguments) if action.metavar == "NAMES" else ():
                start = list(arguments).index(flag) + 1
                names = list(itertools.takewhile(lambda word: not word.startswith("-"), arguments[start:]))
                if len(names) > 1 and names[1] in loose and not names[1].endswith((".yaml", ".yml")):
                    self.error(f"{flag} takes its names with commas and no blanks: {flag} {','.join(names)}")

    def error(self, message: str) -> NoReturn:
        """Say what is wrong in one line."""
        say(f"error: {message}; see {self.prog} --help")
        sys.exit(EXIT_BAD_JOB)


def _take_other_name(word: str, flags: Sequence[str]) -> str:
    """Return a flag by the name that it has in this command, where another command's is given."""
    name, separator, value = word.partition("=")
    others = next((names for names in SAME_FLAGS if name in names), ())
    own = next((other for other in others if other in flags), name) if name not in flags else name
    return own + separator + value


def name_program(command: str) -> str:
    """Return how a command was started, for its usage line: `rerank score` or `python -m jobs.score`."""
    return f"{CONSOLE_SCRIPT} {command}" if Path(sys.argv[0]).name == CONSOLE_SCRIPT else f"python -m jobs.{command}"


def add_job_file(parser: Parser) -> None:
    """Add the job file, which may be left out; it stands first on the command line as `job_file`."""
    parser.add_argument(
        "job_file", nargs="?", metavar="JOB.yaml", help="keys are the flags below with _ for -; flags win"
    )


def add_job_flags(parser: Parser, *kinds: type[Settings], hidden: Container[str] = ()) -> None:
    """Add a flag for each setting of some kinds of job, in its group; the fields hold defaults and help.

    Args:
        parser: to add them to.
        kinds: of job.
        hidden: settings whose flags are taken and stand in no help.
    """
    groups: dict[str, Any] = {}
    for name, info in {name: info for kind in kinds for name, info in kind.model_fields.items()}.items():
        extra = info.json_schema_extra
        if not isinstance(extra, dict):  # a key of the job file alone
            continue
        title = str(extra["group"])
        group = groups.get(title) or groups.setdefault(title, parser.add_argument_group(title))
        types = _plain_types(info.annotation)
        arguments: dict[str, Any] = {"dest": name, "default": argparse.SUPPRESS, "help": info.description}
        if info.default not in (None, "", [], {}, False):
            arguments["help"] += f" (default {_spell(info.default)})"
        arguments["help"] = argparse.SUPPRESS if name in hidden else arguments["help"].replace("%", "%%")
        if bool in types:
            arguments["action"] = argparse.BooleanOptionalAction
        else:
            choices = [choice for kind in types if isinstance(kind, tuple) for choice in kind]
            is_long = len("|".join(choices)) > CHOICES_WIDTH
            arguments["metavar"] = extra["metavar"] or ("|".join(choices) if choices and not is_long else name.upper())
            if is_long and name not in hidden:
                arguments["help"] += f": {', '.join(choices)}"
            if extra["nargs"]:
                arguments["nargs"] = extra["nargs"]
        group.add_argument("--" + name.replace("_", "-"), **arguments)


def _spell(value: Any) -> str:
    """Return a default as a user would give it."""
    if isinstance(value, bool):
        return "on"
    if isinstance(value, float):
        return f"{value:g}"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _plain_types(annotation: Any) -> list[Any]:
    """Return the plain types of an annotation; a Literal as the tuple of its values."""
    origin = get_origin(annotation)
    if origin in (Union, UnionType):
        return [kind for part in get_args(annotation) for kind in _plain_types(part)]
    if (origin is not None and getattr(origin, "_name", None) == "Literal") or str(origin) == "typing.Literal":
        return [get_args(annotation)]
    return [annotation]


def refuse_unscorable(reason: str | None) -> int:
    """Return the exit code of a plan, after saying why it comes to nothing where it does."""
    if reason is None:
        return 0
    say(f"error: {reason}; nothing was started")
    return EXIT_BAD_JOB


def configure_logging() -> None:
    """Send warnings and worse to standard error; the project's own words go through the reporter."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)


def run_command(command: Callable[[], int]) -> NoReturn:
    """Run a command and end this process with its exit code; `call_command` is for processes that go on.

    The process ends without the destructors of native libraries: a thread of Arrow's pools that is about to start as the
    process ends aborts it there (apache/arrow 34314), and the exit code would be lost.
    """
    configure_logging()
    code = EXIT_FAILED
    atexit.register(lambda: _leave(code))  # the first to register is the last to be called
    code = call_command(command)
    if is_pipeline_running():
        _leave(code)
    sys.exit(code)


def call_command(command: Callable[[], int]) -> int:
    """Call a command; return its own exit code, or the code of the error it raised, whose one line is printed."""
    try:
        return command()
    except RunInterruptedError as error:
        say(f"{error}; everything committed stays, the same command goes on from here")
        return 128 + int(error.where["signum"])
    except KeyboardInterrupt:
        say("stopped; nothing was started")
        return 128 + signal.SIGINT
    except OutputConflictError as error:
        say(f"refused: {error}")
        return EXIT_REFUSED
    except JobError as error:
        say(f"error: {error}")
        return EXIT_BAD_JOB
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except RerankError as error:
        say(f"error: {error}")
        return EXIT_FAILED
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else EXIT_FAILED * bool(error.code)
    except Exception as error:  # of a library, or of ours and not meant: a defect whatever it is
        say(f"error: {_describe_defect(error)}")
        return EXIT_FAILED


def _describe_defect(error: Exception) -> str:
    """Return in a sentence what was being done when something was raised that nobody expected, and where the traceback is."""
    own = str(Path(rerank_actor.__file__).parent)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(own)]
    doing = f"in {frames[-1].name} ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else "at the start"
    lines = traceback.format_exception(error)
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="rerank-error-", suffix=".txt", delete=False, encoding="utf-8", errors="backslashreplace"
        ) as file:
            file.writelines(lines)
        place = file.name
    except OSError:  # no room
        sys.stderr.writelines(lines)
        place = "what stands above"
    return (
        f"stopped {doing} by what this program did not foresee, which is a defect of it ({describe_cause(error)}); "
        f"everything committed stays; the traceback is in {place}"
    )


def _leave(code: int) -> NoReturn:
    """End this process at once; nothing that was written is lost."""
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(BrokenPipeError):
            stream.flush()
    os._exit(code)
