"""An external program as a simulator: started once a particle, in a directory of its own, without a shell."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Literal

import numpy as np

from enkg_ppl.evaluation._external import External, SimulationError, quoted
from enkg_ppl.evaluation._template import fill, fill_argument, names_in
from enkg_ppl.evaluation._workers import SimulatorTimeout

KEEP = ("failed", "all", "none")

# In the directory of a simulation, beside the files of the user and of the program.
STDIN, STDOUT, STDERR = "standard_input", "standard_output", "standard_error"

# Of what a program wrote to standard error, for a message.
LAST_LINES = 5
LAST_BYTES = 4096


def command_simulator(
    command: Sequence[str | Path],
    *,
    parameters: Sequence[str] | None = None,
    files: str | Path | Mapping[str, str | Path] | None = None,
    stdin: str | None = None,
    output: str | None = None,
    parse: Callable[[str], Any] | None = None,
    keep: Literal["failed", "all", "none"] = "failed",
    directory: str | Path | None = None,
) -> External:
    """An external program as a simulator, to be given to `blackbox`.

        simulate = blackbox(
            command_simulator(["./heat", "{diffusivity}"], output="field.txt"),
            shape=(10,),
            executor=ThreadPoolExecutor(8),
            timeout=60,
        )

    The program runs once a particle, with a new directory as its working directory, as many side by side as the
    executor has workers. Threads suffice, since the program is a process of its own.

    `{name}` stands for a parameter in arguments, files and `stdin`, `{name[3]}` or `{name[0, 1]}` for one number of it;
    `{{name}}` is the text `{name}`, and every other brace stands for itself. Numbers are written with as many digits as
    it takes to read the same ones back, truth values as 1 and 0. A vector is written as its numbers with a space
    between them, a matrix as its rows on lines of their own; an argument that is `{name}` and nothing else becomes one
    argument for every number.

    A simulation fails, in the sense of `blackbox`, where the program cannot be started, ends with a status other than 0
    or by a signal, does not write the file, or writes NaN, something other than numbers or a different number of them;
    the message has the last lines of its standard error. At a time-out the program is ended. Processes that it started
    and left running in its process group are always ended.

    Args:
        command: the program and its arguments. No shell reads them: spaces, quotes and `$` stand for themselves. The
            program is located immediately, by its path or on `PATH`. Other files that it needs are named by absolute
            paths; an argument that is a `pathlib.Path` is made absolute, as in `[sys.executable, Path("heat.py"),
            "{x}"]`.
        parameters: names of the parameters, in the order of the simulator's arguments. Not needed for a single one.
        files: text files to be written before the program starts. A mapping of their names (relative, without `..`) to
            their contents, or to the `pathlib.Path` of a file that has them; or the path of one such file, which keeps
            its name. They are read immediately.
        stdin: text for its standard input (default: none, the end of the file).
        output: name of the file that has the results (default: standard output).
        parse: function of the text of the output that returns the numbers (default: `numpy.loadtxt`, numbers between
            white space and comments after `#`). They are reshaped to the shape given to `blackbox`, in C order.
        keep: which directories are kept. Those of failed simulations are named in the message; where many fail, "none"
            saves disk space. The program's output is there in `standard_output` and `standard_error`.
        directory: parent of these directories (default: the system's directory for temporary files).

    Raises:
        FileNotFoundError: where the program or a template is not there.
        ValueError: for names of parameters that do not match their places, names of files that lead out of the
            directory, and other invalid settings.
        TypeError: where the command is a string.
    """
    if isinstance(command, str | bytes) or not command:
        raise TypeError(
            f"command_simulator needs the program and its arguments as a list, ['./heat', '{{x}}']; got {command!r}"
        )
    if keep not in KEEP:
        raise ValueError(f"command_simulator needs keep 'failed', 'all' or 'none'; got {keep!r}")
    program = _found(command[0])
    arguments = [a.absolute() if isinstance(a, Path) else str(a) for a in command[1:]]
    texts = _templates(files)
    if output is not None:
        _check_name(output)
    places = [a for a in arguments if isinstance(a, str)] + list(texts.values()) + [stdin or ""]
    names = _parameters([name for text in places for name in names_in(text)], parameters)
    where = None if directory is None else Path(directory).absolute()
    if where is not None and not where.is_dir():
        raise FileNotFoundError(f"there is no directory {where} to make those of the simulations in: make it first")
    return CommandSimulator(program, arguments, names, texts, stdin, output, parse, keep, where)


class CommandSimulator(External):
    """Made by `command_simulator`."""

    def __init__(self, program: Path, arguments, parameters, files, stdin, output, parse, keep, directory):
        super().__init__(program.name, parameters)
        self._program, self._command = program, arguments
        self._files, self._stdin, self._output, self._parse = files, stdin, output, parse
        self._keep, self._directory = keep, directory

    def __call__(self, *args) -> np.ndarray:
        values = self._arguments(args)
        folder = Path(tempfile.mkdtemp(prefix=f"{self.__name__}-", dir=self._directory))
        kept = self._keep == "all"
        try:
            try:
                self._run(folder, values)
                return self._result(self._read(folder, values), values)
            except SimulationError as error:
                kept = self._keep != "none"
                said = _last_lines(folder / STDERR)
                more = f"; its standard error ends {said}" if said else "; its standard error is empty"
                raise self._error(error.what + more + _kept(folder, kept), values) from error.__cause__
            except SimulatorTimeout:
                kept = self._keep != "none"
                raise SimulatorTimeout(_kept(folder, kept)) from None
        finally:
            if not kept:
                shutil.rmtree(folder, ignore_errors=True)

    def _run(self, folder: Path, args: list[np.ndarray]) -> None:
        """Until the program has ended, with status 0."""
        values = dict(zip(self.parameters, args, strict=True))
        for name, text in self._files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(fill(text, values).encode())
        if self._stdin is not None:
            (folder / STDIN).write_bytes(fill(self._stdin, values).encode())
        command = [str(self._program)]
        for argument in self._command:
            command += [str(argument)] if isinstance(argument, Path) else fill_argument(argument, values)
        # Files, not pipes: a process that the program leaves behind may hold a pipe open for ever.
        with contextlib.ExitStack() as opened:
            stdin = os.devnull if self._stdin is None else folder / STDIN
            files = [opened.enter_context(open(p, m)) for p, m in ((stdin, "rb"), (folder / STDOUT, "wb"))]
            stderr = opened.enter_context(open(folder / STDERR, "wb"))
            try:
                process = subprocess.Popen(
                    command, stdin=files[0], stdout=files[1], stderr=stderr, cwd=folder, start_new_session=True
                )
            except (OSError, ValueError) as error:
                raise self._error(f"could not be started ({error})", args) from error
        try:
            status = process.wait(self._timeout)
        except subprocess.TimeoutExpired:
            raise SimulatorTimeout from None
        finally:
            _end_group(process)
        if status:
            how = f"was ended by {_signal(-status)}" if status < 0 else f"ended with status {status}"
            raise self._error(how, args)

    def _read(self, folder: Path, args: list[np.ndarray]) -> Any:
        path = folder / (self._output or STDOUT)
        source = "standard output" if self._output is None else self._output
        try:
            text = path.read_bytes().decode()
        except FileNotFoundError:
            raise self._error(f"wrote no file {self._output}", args) from None
        except (OSError, UnicodeDecodeError) as error:
            raise self._error(f"wrote {source} as something that is no text ({error})", args) from error
        if not text.strip() and self._parse is None:
            raise self._error(f"wrote nothing to {source}", args)
        try:
            return np.loadtxt(text.splitlines(), ndmin=1) if self._parse is None else self._parse(text)
        except Exception as error:  # whatever a parser does with what it was not made for
            who = "numpy.loadtxt" if self._parse is None else getattr(self._parse, "__name__", "parse")
            remedy = "; parse= of command_simulator takes a function that does" if self._parse is None else ""
            reason = quoted(f"{type(error).__name__}: {error}")
            raise self._error(f"wrote {source} that {who} cannot read ({reason}{remedy})", args) from error


def _end_group(process: subprocess.Popen) -> None:
    """The program, if it still runs, and what it has started."""
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _kept(folder: Path, kept: bool) -> str:
    return f"; its files are in {folder}" if kept else ""


def _last_lines(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - LAST_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    lines = [line for line in text.splitlines() if line.strip()]
    return quoted("\n".join(lines[-LAST_LINES:])) if lines else ""


def _found(program: str | Path) -> Path:
    """Its absolute path: the simulations run in other directories."""
    name = str(program)
    has_folder = isinstance(program, Path) or os.path.dirname(name)
    path = Path(name).absolute() if has_folder else shutil.which(name)
    if path is None or not Path(path).is_file():
        where = f"there is no file {path}" if path else f"there is no program {name} on PATH"
        raise FileNotFoundError(f"{where}: give command_simulator the path of the program")
    if not os.access(path, os.X_OK):
        raise PermissionError(f"{path} may not be executed: run chmod +x on it, or put its interpreter before it")
    return Path(path).absolute()


def _templates(files: str | Path | Mapping[str, str | Path] | None) -> dict[str, str]:
    if files is None:
        return {}
    if isinstance(files, str | Path):
        files = {Path(files).name: Path(files)}
    for name in files:
        _check_name(name)
    return {name: _text_of(text) if isinstance(text, Path) else text for name, text in files.items()}


def _text_of(path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except FileNotFoundError:
        raise FileNotFoundError(
            f"there is no template {path}: give its path, or its text as files={{'name': 'text'}}"
        ) from None
    except UnicodeDecodeError as error:
        raise ValueError(f"the template {path} is no text in UTF-8 ({error})") from error


def _check_name(name: str) -> None:
    """Names of files lie in the directory of the simulation, on every system."""
    leads_out = any(
        path.is_absolute() or path.drive or path.root or ".." in path.parts or not path.parts
        for path in (PurePosixPath(name), PureWindowsPath(name))
    )
    if leads_out or "\0" in name:
        raise ValueError(
            f"the file {name!r} does not lie in the directory of a simulation: give a relative path without '..'"
        )
    if str(PurePosixPath(name)) in (STDIN, STDOUT, STDERR):
        raise ValueError(f"the name {name!r} is taken for what the program reads and writes: choose another")


def _parameters(found: list[str], given: Sequence[str] | None) -> list[str]:
    """In the order in which the simulator takes them."""
    found = list(dict.fromkeys(found))
    if given is None:
        if len(found) > 1:
            raise ValueError(
                f"command_simulator has places for {', '.join(found)}: say in which order the simulator takes them, "
                f"with parameters={found!r} or another order"
            )
        return found
    names = [given] if isinstance(given, str) else list(given)
    if len(set(names)) < len(names):
        raise ValueError(f"command_simulator needs every one of its parameters once; got {names!r}")
    for name in names:
        if name not in found:
            raise ValueError(
                f"the parameter {name!r} has no place: write {{{name}}} in the arguments, in a file or in stdin"
            )
    for name in found:
        if name not in names:
            raise ValueError(
                f"{{{name}}} is none of the parameters {names!r}: name it there, or write {{{{{name}}}}} for the text "
                f"{{{name}}}"
            )
    return names
