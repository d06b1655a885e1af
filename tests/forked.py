"Processes of tests are forks of one that has imported what takes seconds."

import os
import runpy
import sys
import tempfile
from multiprocessing import forkserver, get_context
from pathlib import Path
from subprocess import CompletedProcess

FORKS, started = get_context("forkserver"), {}
IMPORTED = [
    "ssv2_report",  # before nbformat
    *("torch", "timm", "accelerate", "scipy.stats", "matplotlib.pyplot", "pandas"),
    *("execnb.shell", "papermill", "ssv2_report.train", "ssv2_report.analysis.cases"),
    *("ssv2_report.gradcam.explorer", "ssv2_report.report.site", "rich.console", "rich.progress"),
    *("rich.table", "rich.traceback", "rich.panel", "rich.markdown", "rich.columns", "warm"),
]


def fork(target, *args, **kwargs):
    """A process that has begun to call `target`; a test process has one process to fork for all its
    tests, but for those of jobs, which start another with other imports and without SIGINT."""
    server = forkserver._forkserver
    if server._forkserver_pid != started.get("pid"):
        server._stop()
    FORKS.set_forkserver_preload(IMPORTED)
    process = FORKS.Process(target=target, args=args, kwargs=kwargs)
    process.start()
    started["pid"] = server._forkserver_pid
    return process


def _become(command, outputs, env):
    for number, path in enumerate(outputs, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = command
    if command[0].endswith(".py"):
        runpy.run_path(command[0], run_name="__main__")
    else:
        runpy.run_module(command[0], run_name="__main__", alter_sys=True)


def program(*command, env):
    "A script's file or a module, and its words: how it ends as a program of its own, and what it prints."
    command = [*map(str, command)]
    with tempfile.TemporaryDirectory() as folder:
        outputs = [Path(folder) / name for name in ("stdout", "stderr")]
        process = fork(_become, command, outputs, env)
        process.join()
        return CompletedProcess(command, process.exitcode, *(p.read_text() for p in outputs))


def ssv2(*args, **env):
    "The command, without colours."
    return program("ssv2_report.cli", *args, env=os.environ | dict(NO_COLOR="1") | env)
