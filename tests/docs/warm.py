"""Run programs without waiting for torch: a process that has imported it forks one child per program.

    python warm.py SOCKET                    serves
    CLIENT in test_blocks.py                 is the program that asks it

The child has the caller's arguments, working folder, environment and standard streams, and ends as the program does.
Importing torch takes longer than most commands of a page; what the command line does when it is started cold is held by
tests/test_import_time.py.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import socket
import sys
import traceback
from pathlib import Path


def serve(path: str) -> None:
    """Import what programs need, say so on standard output, and wait for requests."""
    import sklearn.datasets  # noqa: F401
    import torch

    import taskloom.cli.task_cli  # noqa: F401

    torch.set_num_threads(1)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(path)
    listening.listen()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the children: they answer by themselves
    print("ready", flush=True)
    while True:
        caller, _ = listening.accept()
        if os.fork() == 0:
            listening.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _answer(caller)
        caller.close()


def _answer(caller: socket.socket) -> None:
    header, streams, _, _ = socket.recv_fds(caller, 4, 3)
    size, received = int.from_bytes(header, "big"), b""
    while len(received) < size:
        received += caller.recv(size - len(received))
    program, arguments, folder, environment = json.loads(received)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    code = _run(program, arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    caller.sendall(str(code).encode())
    os._exit(code)


def _run(program: str, arguments: list[str]) -> int:
    try:
        if program == "task":
            from taskloom.cli import main

            sys.argv = ["task", *arguments]
            main()
        else:
            sys.argv = arguments
            sys.path.insert(0, str(Path(arguments[0]).parent.resolve()))
            runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except BaseException:  # as the interpreter does with whatever a program raises
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    sys.path.pop(0)  # this folder
    serve(sys.argv[1])
