"""The launchers of preloaded.py. One runs for every command and every worker, so it imports little."""

import marshal
import os
import select
import signal
import socket
import sys

ORPHANED = 255  # among the numbers of signals that a client sends
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)


def client(address: str, arguments: list[str]) -> None:
    """Have the server run `python ARGUMENTS`, and be its double: pass on signals, and end as it ends."""
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(address)
        files = [number for number in _open_files() if number != server.fileno()]
        environment = dict(os.environ)
        request = {"arguments": arguments, "folder": os.getcwd(), "environment": environment, "files": files}
        message = marshal.dumps(request)
        server.sendall(len(message).to_bytes(8, "big"))
        socket.send_fds(server, [b"f"], files)
        server.sendall(message)
        for number in files:  # a pipe ends only when everyone has closed it
            if number > 2:
                os.close(number)
        for number in FORWARDED:
            signal.signal(number, lambda number, _: server.sendall(bytes([number])))
        # Programs that end with their parent ask for it every now and then; theirs is this process's.
        parent = os.getppid()
        while not select.select([server], [], [], 0.2)[0]:
            if os.getppid() != parent:
                server.sendall(bytes([ORPHANED]))
                break
        answer = server.recv(4)
        if not answer:
            sys.exit("the server of preloaded processes is gone, and with it the exit code")
        status = int.from_bytes(answer, "big", signed=True)
    if status < 0:
        if -status != signal.SIGKILL:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    sys.exit(status)


def _open_files() -> list[int]:
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            os.fstat(int(name))
        except OSError:  # the one that listed the folder
            continue
        found.append(int(name))
    return sorted(found)
