"""Run commands as processes of their own that find the heavy libraries already loaded.

Most of the time of a tiny nnU-Net command goes into importing torch and the like, once for the command and once more
for every worker process that it spawns. Here a server imports what nnU-Net needs (not nnU-Net itself, nor this package:
both read their environment at import) and what our commands import late, and forks one process per command. A launcher
stands for the interpreter, also in what the command itself starts: `LAUNCHER ARGUMENTS...` does what
`python ARGUMENTS...` does, with the same environment, folder, open files, signals and exit code. Linux only, as it
needs pidfds and /proc.

But PyTorch gets one thread: other tests need the other cores, and with a tiny network threads wait for each other for
longer than they work.
"""

import contextlib
import marshal
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from preloaded_client import ORPHANED

# What nnU-Net's commands run; the rest of it (dataset conversions, tests) needs libraries of its own.
PARTS = ["evaluation", "experiment_planning", "imageio", "inference", "postprocessing", "preprocessing", "run"]
PARTS += ["training", "utilities"]
# What takes our own commands longest to import.
OURS = {"captum.attr", "jinja2", "monai.metrics", "parsl", "parsl.executors.high_throughput.executor"}
PR_SET_CHILD_SUBREAPER = 36  # of linux/prctl.h
MADV_COLLAPSE, HUGE_PAGE = 25, 2**21  # of linux/mman.h; bytes


def write_commands(folder: Path, address: str) -> Path:
    """Write the environment's commands once more, for processes from the server at `address`; returns the launcher."""
    launcher = folder / "python"
    lines = [
        f"#!{sys.executable} -SE",
        "import sys",
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})",
        "from preloaded_client import client",
        f"client({address!r}, sys.argv[1:])",
    ]
    launcher.write_text("\n".join(lines) + "\n")
    launcher.chmod(0o755)
    for script in Path(sys.executable).parent.iterdir():
        command = folder / script.name
        if script.name.startswith(("nnUNetv2_", "nnunet-plugins", "process_worker_pool")):
            command.write_text(f'#!/bin/sh\nexec {launcher} {script} "$@"\n')
            command.chmod(0o755)
        elif script.name == "interchange.py":  # Parsl's, which is also read as a module
            command.symlink_to(script)
    return launcher


def serve(address: str, launcher: str) -> NoReturn:
    """Fork a process for each request until stdin closes, then end all that is left."""
    import ctypes
    import gc

    _preload()
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)  # so that orphans stay among the descendants
    gc.freeze()  # so that no forked process searches, and copies, what is loaded here
    _collapse()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(64)
    print("ready", flush=True)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the tests, which then close stdin
    while True:
        ready, _, _ = select.select([listener, 0], [], [])
        if 0 in ready:
            while left := _children(os.getpid()):
                for process in left:
                    with contextlib.suppress(ProcessLookupError):  # it may end by itself, and nobody keeps its number
                        os.kill(process, signal.SIGKILL)
                time.sleep(0.05)
            os._exit(0)
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            request, files = _receive(connection)
            process = os.fork()
            if process == 0:
                connection.close()
                _become(request, files)
                _end(_run, request["arguments"], launcher)
            for number in files:
                os.close(number)
            _watch(process, connection)
            os._exit(0)
        connection.close()


def _children(process: int) -> list[int]:
    return [int(number) for number in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def _preload() -> None:
    """Import every library that nnU-Net's modules import at their top, and some that ours do."""
    import ast
    import importlib
    import importlib.util
    import warnings

    (root,) = importlib.util.find_spec("nnunetv2").submodule_search_locations
    names = {"multiprocessing.pool", "multiprocessing.spawn", "multiprocessing.resource_tracker", *OURS}
    for part in PARTS:
        for file in Path(root, part).rglob("*.py"):
            for node in ast.parse(file.read_text()).body:
                if isinstance(node, ast.Import):
                    names |= {alias.name for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module:
                    names.add(node.module)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in sorted(names):
            if name.split(".")[0] != "nnunetv2":
                with contextlib.suppress(ImportError):  # optional, and missing
                    importlib.import_module(name)


def _collapse() -> None:
    """Put the memory into huge pages, where the kernel can: forking takes time for each page, and nnU-Net forks a lot.

    Half a gigabyte in small pages costs 40 ms of the processor per fork, and one command of nnU-Net's makes up to 48.
    """
    import ctypes

    libc = ctypes.CDLL(None)
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, rights, _, _, _, *name = line.split()
        if "w" in rights and name in ([], ["[heap]"]):
            start, end = (int(number, 16) for number in span.split("-"))
            start, end = -(-start // HUGE_PAGE) * HUGE_PAGE, end // HUGE_PAGE * HUGE_PAGE
            if start < end:
                libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), MADV_COLLAPSE)


def _receive(connection: socket.socket) -> tuple[dict, list[int]]:
    size = int.from_bytes(connection.recv(8, socket.MSG_WAITALL), "big")
    _, files, _, _ = socket.recv_fds(connection, 1, 253)
    return marshal.loads(connection.recv(size, socket.MSG_WAITALL)), files


def _become(request: dict, files: list[int]) -> None:
    """Take over the client's open files, folder and environment, and what every new interpreter does for itself."""
    import fcntl
    import random
    import site
    import sysconfig

    import numpy as np
    import torch

    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which tests that were started with nohup ignore
    high = [fcntl.fcntl(number, fcntl.F_DUPFD, 500) for number in files]
    os.closerange(0, 500)
    for source, number in zip(high, request["files"], strict=True):
        os.dup2(source, number)
        os.close(source)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    random.seed()
    np.random.seed()
    torch.seed()  # or all networks begin with the same weights
    # The startup files of the environment's packages; ours tells nnU-Net where our trainers are.
    packages = sysconfig.get_path("purelib")  # Debian's Python has further site-packages
    for file in Path(packages).glob("*.pth"):
        if file.name.startswith("nnunet_plugins"):
            site.addpackage(packages, file.name, set())


def _watch(process: int, connection: socket.socket) -> None:
    """Pass on the client's signals, kill the process if the client dies, and tell the client how it ended."""
    end = os.pidfd_open(process)
    while True:
        ready, _, _ = select.select([end, connection], [], [])
        if end in ready:
            status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
            with contextlib.suppress(BrokenPipeError):
                connection.sendall(status.to_bytes(4, "big", signed=True))
            return
        number = connection.recv(1)
        if number == bytes([ORPHANED]):
            return
        os.kill(process, number[0] if number else signal.SIGKILL)
        if not number:
            return


def _end(run: Callable[..., None], *arguments: object) -> NoReturn:
    """Run, then end as an interpreter ends, without the seconds that it takes to unload libraries."""
    import atexit
    import threading
    import traceback

    code: object = 0
    try:
        run(*arguments)
    except SystemExit as end:
        code = end.code
        if isinstance(code, str):
            print(code, file=sys.stderr)
            code = 1
    except KeyboardInterrupt:
        traceback.print_exc()
        code = 128 + signal.SIGINT
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        if not stream.closed:
            stream.flush()
    os._exit(code or 0)


def _run(arguments: list[str], launcher: str) -> None:
    """Do what `python ARGUMENTS` does, where the worker processes that are spawned come from the server, too."""
    import multiprocessing
    import runpy
    import types

    import torch

    sys.executable = launcher
    multiprocessing.set_executable(launcher)
    torch.set_num_threads(1)
    sys.path[1:1] = [folder for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder]
    while arguments[0].startswith("-") and arguments[0] not in ("-c", "-m"):
        arguments = arguments[1:]  # options of the interpreter, which is the same anyway
    if arguments[0] == "-c":
        sys.argv = ["-c", *arguments[2:]]
        sys.path[0] = ""
        sys.modules["__main__"] = types.ModuleType("__main__")
        exec(arguments[1], vars(sys.modules["__main__"]))
    elif arguments[0] == "-m":
        sys.argv = arguments[1:]
        sys.path[0] = os.getcwd()
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        command = os.path.basename(arguments[0])
        if command.startswith("nnUNetv2_"):
            multiprocessing.cpu_count = lambda: 1  # as many threads it takes on a CPU
        if command == "nnUNetv2_train":
            _leave_pictures_empty()
        sys.argv = arguments
        sys.path[0] = os.path.dirname(arguments[0])
        runpy.run_path(arguments[0], run_name="__main__")


def _leave_pictures_empty() -> None:
    """Draw nothing of the picture after every epoch, which takes nnU-Net a fifth of a second, and which no test reads.

    It is drawn where trainings run in the tests' own process or in a real interpreter.
    """
    from nnunetv2.training.logging import nnunet_logger

    for logger in vars(nnunet_logger).values():
        if hasattr(logger, "plot_progress_png"):
            logger.plot_progress_png = lambda _, folder: Path(folder, "progress.png").write_bytes(b"")


if __name__ == "__main__":
    serve(*sys.argv[1:])
