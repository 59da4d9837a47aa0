"""The program `msrrn`: parses a call, runs one command, turns errors into one line and an exit code."""

import argparse
import errno
import io
import logging
import os
import re
import select
import signal
import sys
from collections.abc import Sequence
from http import HTTPStatus
from importlib.metadata import version
from pathlib import Path
from traceback import walk_stack
from types import FrameType
from typing import Final, NoReturn

from pipelines.errors import UsageError, UserError, disk_is_full
from pipelines.secrecy import has_password, without_secrets
from pipelines.showable import showable

DESCRIPTION = """\
Face landmarks at any scale: the multiscale recurrent regression network (MSRRN)
as a pipeline. Annotated photos in, a better champion out; 68 landmarks on every
face of an archive."""

EPILOG = """\
start here:
  msrrn demo                                               everything once, on synthetic photos, in minutes
  msrrn annotate photos.tar --out annotations              with the champion, or the model in the package
  msrrn retrain --data 300w --archive photos --out work    a model of your own, then photos annotated with it

places:
  a folder, file:///folder or s3://bucket/prefix. MLFLOW_TRACKING_URI (default: mlflow.db in this
  folder), PREFECT_API_URL, RAY_ADDRESS and AWS_* switch from this machine to servers.

every COMMAND --help ends with examples.
exit codes: 0 done, 1 the job failed, 2 an option is wrong, 130 interrupted, 141 whoever read stdout has gone.
--debug, anywhere, shows tracebacks."""

_WITHOUT_MEMORY: Final = re.compile("can't start new thread|could not create a primitive|can't allocate memory")
"""What Python, and torch, say where there is none, in errors of any kind of trouble."""
_INTERRUPTED: Final = 130
_STOPPED: Final = "interrupted; the same command goes on where this one stopped"
_BROKEN_PIPE: Final = 141
"""What a shell reports of any program whose reader has gone."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line; returns its exit code."""
    _open_standard_files()
    _say_any_name()
    _have_home()
    _reach_this_machine()
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    while "--debug" in arguments:
        arguments.remove("--debug")
    try:
        if not arguments:
            parser().print_help(sys.stderr)
            return 2
        call, unknown = parser().parse_known_args(arguments)
        if unknown:  # a shell may make thousands of a *.jpg
            more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
            remedy = "" if any(word.startswith("-") for word in unknown) else call.surplus
            call.refuse(f"unrecognized arguments: {' '.join(unknown[:5])}{more}{remedy}")
        _quiet(debug or call.loud)
        _without_passwords(call)
        _require_folder()
        code = int(call.run(call) or 0)
        print(end="", flush=True)  # what cannot be said is an error as well
        return code
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            return _BROKEN_PIPE
        if debug:
            raise
        _fail(_explained(error))
        return 2 if isinstance(error, UsageError) else 1
    except KeyboardInterrupt as interrupt:
        _fail(str(interrupt) or _STOPPED)
        return _INTERRUPTED


class _Parser(argparse.ArgumentParser):
    """Says what is wrong with a call as any other error is said: what it quotes may be a password, or anybody's."""

    def error(self, message: str) -> NoReturn:
        super().error(showable(without_secrets(message)))


def parser() -> argparse.ArgumentParser:
    """The parser of every command; commands are declared in `flows.commands`."""
    from flows.commands import add_commands

    top = _Parser(
        "msrrn", description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    top.add_argument("--version", action="version", version=f"msrrn {version('msrrn')}")
    add_commands(top.add_subparsers(title="commands", metavar="COMMAND", required=True))
    return top


def _without_passwords(call: argparse.Namespace) -> None:
    """Raises UsageError where an argument is an address with a user in it: runs remember how they were called."""
    for name, value in vars(call).items():
        said = value if isinstance(value, list) else [value]
        if any(isinstance(each, str) and has_password(each) for each in said):
            raise UsageError(
                f"{name.replace('_', '-')}: no user or password in an address; S3 credentials go into "
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            )


def _require_folder() -> None:
    """Raises UserError where the folder of the call was deleted: torch would end the process, by a word of MKL."""
    try:
        Path.cwd()
    except FileNotFoundError:
        raise UserError(
            "the folder that this is called in was deleted: go to another one (cd), and call again"
        ) from None


def _open_standard_files() -> None:
    """Opens those that whoever started this closed, as some do for what runs by itself, to nowhere.

    The next file that is opened would be one of them, and what libraries say there would be written into it.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115 - a descriptor, for good


def _say_any_name() -> None:
    """Lets stdout take what its encoding has no letters for, as stderr does: a folder's name may be no UTF-8."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


def _have_home() -> None:
    """Lets a user without account and HOME have the one that containers give: MLflow and Prefect ask for its name."""
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = "/"


def _reach_this_machine() -> None:
    """Lets no proxy stand before servers of this machine, such as that of Prefect which a flow starts."""
    asked = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    if asked != "*":  # all hosts, where it stands alone
        hosts = ",".join(dict.fromkeys([*filter(None, asked.split(",")), "127.0.0.1", "localhost"]))
        os.environ.update(no_proxy=hosts, NO_PROXY=hosts)  # some read the one, some the other


def _quiet(debug: bool) -> None:
    """Servers and libraries speak only when something is wrong, unless one asks by their own variables."""
    defaults = {
        "PREFECT_LOGGING_LEVEL": "INFO" if debug else "CRITICAL",
        "PREFECT_SERVER_LOGGING_LEVEL": "WARNING" if debug else "CRITICAL",  # of the one that a flow starts
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        # As in prefect.yaml: retrainings and people who are asked take hours. One that never answered is not awaited.
        "PREFECT_CLIENT_MAX_RETRIES": "8",
        "DO_NOT_TRACK": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        # Python would import from the folder of the call, where somebody's pictures may lie: Prefect's server, too.
        "PYTHONSAFEPATH": "1",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    if not debug:
        # Where Prefect is loaded, it would tell each attempt to reach a server, before the one line that says it all.
        logging.getLogger("urllib3").setLevel(logging.ERROR)
        # Likewise, with tracebacks, and with the SQL of figures that a training does without.
        for name in ("mlflow.store.db.utils", "mlflow.system_metrics.system_metrics_monitor"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        # It warns that it keeps its list of fonts for this call alone where there is no home.
        logging.getLogger("matplotlib").setLevel(logging.ERROR)


def _nobody_reads() -> bool:
    """Whether whoever read stdout has gone, as `head` does; what is left to be said is then dropped."""
    reader = select.poll()
    reader.register(sys.stdout.fileno(), 0)
    gone = any(event & (select.POLLERR | select.POLLHUP) for _, event in reader.poll(0))
    if gone:  # Python would try again at its end, and complain
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return gone


def _explained(error: Exception) -> str:
    """One or two lines for a person."""
    if isinstance(error, UserError):
        return str(error)
    if said := _of_prefect(error):
        return said
    if type(error).__name__ == "InvalidURL":  # of a password with a / it says a part, which it takes for a port
        return (
            "PREFECT_API_URL, or that of a proxy, is no address of a server: give http://HOST:PORT/api; user and "
            "password go into PREFECT_API_AUTH_STRING"
        )
    if type(error).__name__ == "ParameterTypeError":  # Prefect's, of a flow: its parameters have types of their own
        refused = "; ".join(line.removeprefix(" - ") for line in str(error).splitlines()[1:])
        return f"the call gives what cannot be used: {without_secrets(refused)}"
    if isinstance(error, ModuleNotFoundError):  # the driver of a database, that of another storage, ...
        return f"what the call asks for needs the Python package {error.name}, which is not installed"
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _WITHOUT_MEMORY.search(str(error))):
        said = f" ({error})" if str(error) else ""
        return f"there is not enough memory{said}: free some, lower --workers, or raise the limit (ulimit -v)"
    if disk_is_full(error):
        return "disk full, perhaps where temporary files go (TMPDIR): free some space, and run again"
    if isinstance(error, OSError) and error.errno == errno.EIO:
        where = f" at {error.filename}" if error.filename else ""
        return f"the disk failed{where} ({error.strerror}): dmesg says more; nothing half-written was left: run again"
    said = without_secrets(str(error).strip())
    return f"{type(error).__name__}: {said or 'no message'}\nRun the command with --debug for details"


def _of_prefect(error: Exception) -> str | None:
    """What to do where the error is that Prefect's server does not answer, or with one of its own."""
    if "prefect" not in sys.modules:
        return None
    from httpx import HTTPStatusError, TransportError
    from prefect.settings import get_current_settings

    settings = get_current_settings()
    server = without_secrets(settings.api.url or "")
    status = error.response.status_code if isinstance(error, HTTPStatusError) else 0
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        if server:
            return f"the Prefect server at {server} answers {status}: its own log says why, as that its disk is full"
        return (
            f"what Prefect keeps of this run in {settings.home} could not be written, perhaps as that disk is full: "
            "free some space, and run again"
        )
    said = isinstance(error, RuntimeError) and str(error).startswith("Failed to reach API at")
    # Of what it has not, Prefect's API says so in errors of its own.
    said |= isinstance(error, TransportError) or status == HTTPStatus.NOT_FOUND
    if said and server:
        return (
            f"no Prefect server answers at {server}: start it, or correct or unset PREFECT_API_URL, whose address "
            "ends in /api"
        )
    return None


def _fail(message: str) -> None:
    print(f"msrrn: {showable(message)}", file=sys.stderr)


def entry() -> NoReturn:
    """The console script."""
    _read_names_as_utf8()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # `nohup` ignores the last, the background of a script the first.
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, _interrupt)
    try:
        sys.exit(main())
    finally:
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            if callable(signal.getsignal(number)):  # all is done and told: nothing is left to be interrupted, but Ray
                signal.signal(number, signal.SIG_DFL)


def _read_names_as_utf8() -> None:
    """Begins anew in UTF-8 where Python takes names of files for ASCII, as a job that is told PYTHONUTF8=0 may.

    What is not ASCII in them would be no letter, and the pictures quarantined for their names. Ray, and the process
    that looks at pictures, inherit it.
    """
    if sys.getfilesystemencoding() == "ascii" and os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _interrupt(number: int, frame: FrameType | None) -> None:
    """A service manager, a cluster or a terminal that is closed ends a command as Ctrl-C does: training stops at a
    checkpoint, and what is held is let go.

    Of an exception in the midst of an import, Python, Cython and pydantic lose or rename one in fifty, and torch that
    is half there aborts at the end. While a command does no more than to load its modules, nothing is held: it ends
    at once.
    """
    if _loading(frame):
        _fail(_STOPPED)
        os._exit(_INTERRUPTED)
    ctrl_c = signal.getsignal(signal.SIGINT)
    if not callable(ctrl_c) or ctrl_c is _interrupt:
        raise KeyboardInterrupt
    ctrl_c(signal.SIGINT, frame)


def _loading(frame: FrameType | None) -> bool:
    """Whether what runs there is an import that a command makes itself, outside of all work."""
    names = [each.f_globals.get("__name__", "") for each, _ in walk_stack(frame)]
    called = (name for name in reversed(names) if name != "__main__" and not name.startswith("flows."))
    return next(called, "") == "importlib._bootstrap"
