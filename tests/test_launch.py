"Jobs that are forks of a process which has imported what takes seconds, and notebooks in them."

import json
import os
import signal
import socket
import subprocess
import sys
from multiprocessing import forkserver
from pathlib import Path

import psutil
import pytest
from jobs import gone, heeded, until
from nbformat.v4 import new_code_cell, new_notebook, writes

from ssv2_report.jobs import launch
from ssv2_report.jobs.launch import FORKS, forks
from ssv2_report.machine.processes import process_identity

ROOT = Path(launch.__file__).parents[2]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere jobs start anew")


# -- any job

LAUNCH = [sys.executable, "-m", "ssv2_report.jobs.launch"]


def as_job(told, tmp_path, code, **kw):
    "A process that runs `code` as the workflow runs a job, which looks after its command."
    watch = "from ssv2_report.machine.processes import exit_with_command; exit_with_command()\n"
    (tmp_path / "work.py").write_text(watch + code)
    env = {**os.environ, "PYTHONPATH": str(ROOT), **told}
    return subprocess.Popen([*LAUNCH, "work", "of it"], cwd=tmp_path, env=env, text=True, **kw)


WHO = """
import os, sys
early = {"torch", "tabnanny", "ssv2_report.train"} & {*sys.modules}
print(sys.argv[1:], __name__, os.getcwd(), *early)
print("an error", file=sys.stderr)
"""
PIPE = subprocess.PIPE


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    "The variables of a process to fork with all its imports: that they are of use to jobs, and none of this library's, is asked here alone."
    forkserver._forkserver._stop()  # one that another test of this process started has other imports
    with forks() as told:
        ready(told, tmp_path_factory.mktemp("early"))
        yield told


def ready(told, folder):
    "A job that comes before all is imported waits for that."
    said = as_job(told, folder, WHO, stdout=PIPE).communicate()[0]
    assert told and {"torch", "tabnanny"} & {*said.split()}


@pytest.mark.parametrize(
    "end, code",
    [("", 0), ("sys.exit(3)", 3), ("sys.exit('a sentence')", 1), ("1 / 0", 1), ("os.abort()", 134)],
)
def test_a_job_is_a_fork_that_prints_and_ends_as_ever(told, tmp_path, end, code):
    for found, imported in ((told, "torch"), ({}, "")):
        job = as_job(found, tmp_path, WHO + end, stdout=PIPE, stderr=PIPE)
        said, errors = job.communicate()
        assert said.strip() == f"['of it'] __main__ {tmp_path} {imported}".strip()
        assert "an error" in errors and ("a sentence" in errors) == ("sentence" in end)
        assert job.returncode in (code, -signal.SIGABRT if code == 134 else code)


def test_a_job_has_its_own_place_variables_and_threads(told, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("SSV2_OF_THIS_JOB", "its own")
    code = "import os, torch; print(torch.get_num_threads(), os.environ['SSV2_OF_THIS_JOB'])"
    job = as_job(told, tmp_path, f"{code}\nprint(torch.cuda.is_initialized())", stdout=PIPE)
    assert job.communicate()[0] == "3 its own\nFalse\n"


def test_forks_draw_their_own_numbers(told, tmp_path):
    code = "import numpy, random; print(numpy.random.rand(), random.random())"
    drawn = [as_job(told, tmp_path, code, stdout=PIPE).communicate()[0].split() for _ in range(2)]
    assert drawn[0][0] != drawn[1][0] and drawn[0][1] != drawn[1][1]


WAITS = """
import os, pathlib, signal, time
def save(*_):
    time.sleep(1)
    pathlib.Path("saved").touch()
    os._exit(1)
signal.signal(signal.SIGTERM, save)
pathlib.Path("pid").write_text(str(os.getpid()))
time.sleep(600)
"""


def begun(tmp_path):
    "The id of a job that waits, once it does."
    pid = tmp_path / "pid"
    assert until(lambda: pid.exists() and pid.read_text())
    return int(pid.read_text())


def test_a_job_has_time_to_end_when_it_is_asked_to(told, tmp_path):
    job = as_job(told, tmp_path, WAITS)
    assert begun(tmp_path) != job.pid
    for sign in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        job.send_signal(sign)
    assert job.wait(60) == 1 and (tmp_path / "saved").exists()


def test_a_fork_that_is_interrupted_as_it_begins_shows_no_traceback(told, tmp_path):
    job = as_job(told, tmp_path, "raise KeyboardInterrupt", stderr=PIPE)
    assert job.communicate()[1] == "" and job.returncode == 130


def test_a_job_that_is_killed_ends(told, tmp_path):
    job = as_job(told, tmp_path, WAITS)
    pid = begun(tmp_path)
    job.kill()
    job.wait()
    assert until(lambda: gone(pid))


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), signal.SIGKILL)", "os._exit(0)"])
def test_a_job_that_dies_is_named_in_its_log(told, tmp_path, end):
    "Whatever it was that ended it, it had not come to its end."
    code = f"import os, signal, sys; print('at step 7', file=sys.stderr, flush=True); {end}"
    job = as_job(told, tmp_path, code, stderr=PIPE)
    step, said = job.communicate()[1].splitlines()
    assert step == "at step 7" and job.returncode == 137
    assert said.startswith(
        "ssv2: `ssv2 of it` was ended by SIGKILL, as the system does for want of "
    )


@pytest.mark.parametrize("said", [b"", b"{", b"\x00\x00\x00\x04null"])
def test_a_job_that_goes_before_it_is_answered_takes_no_other_with_it(told, tmp_path, said):
    for _ in range(3):
        with socket.socket(socket.AF_UNIX) as job:
            job.connect(told[FORKS])
            job.sendall(said)
    assert "torch" in as_job(told, tmp_path, WHO, stdout=PIPE).communicate()[0]


# -- the command that owns the forks

STAYS = """
import sys, time
from ssv2_report.jobs import launch
if __name__ == "__main__":
    launch.IMPORTED = ("tabnanny",)  # which nothing else imports: enough to see that it was
    with launch.forks() as told:
        print(*told.values(), flush=True)
        time.sleep(600)
"""


@pytest.fixture
def command(tmp_path):
    "A command that owns forks, and the variables by which they are found."
    (tmp_path / "stays.py").write_text(STAYS)
    started = []

    def start(**env):
        env = {**os.environ, "PYTHONPATH": str(ROOT), **env}
        process = subprocess.Popen(
            [sys.executable, tmp_path / "stays.py"],
            stdout=PIPE,
            stderr=PIPE,
            env=env,
            text=True,
            preexec_fn=heeded,
        )
        started.append(process)
        told = {
            FORKS: process.stdout.readline().strip(),
            "SSV2_COMMAND": process_identity(process.pid),
        }
        if told[FORKS]:
            ready(told, tmp_path)
        return process, told

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("sign", ["SIGKILL", "SIGTERM", "SIGINT"])
def test_forks_end_with_the_command_or_with_what_they_are_forks_of(command, tmp_path, sign):
    process, found = command()
    job = as_job(found, tmp_path, WAITS)
    fork = psutil.Process(begun(tmp_path))
    forked_of = fork.parent()
    (forked_of if sign == "SIGTERM" else process).send_signal(getattr(signal, sign))
    assert until(lambda: gone(fork.pid) and gone(forked_of.pid))
    assert (tmp_path / "saved").exists(), "a training has time for its checkpoint"
    assert job.wait(60)


def test_jobs_start_anew_where_what_was_forked_is_gone(command, tmp_path):
    process, found = command()
    job = as_job(found, tmp_path, WAITS)
    psutil.Process(begun(tmp_path)).parent().kill()
    assert job.wait(60)
    said = as_job(found, tmp_path, WHO, stdout=PIPE).communicate()[0]
    assert "of it" in said and "tabnanny" not in said


def test_nothing_is_left_when_the_command_ends(command, tmp_path):
    process, found = command(TMPDIR=str(tmp_path))
    as_job(found, tmp_path, "").wait()
    left = psutil.Process(process.pid).children(recursive=True)
    assert left and Path(found[FORKS]).exists()
    process.send_signal(signal.SIGINT)
    process.wait(60)
    assert until(lambda: all(gone(p.pid) for p in left))
    assert not [p for p in tmp_path.iterdir() if p.name.startswith("pymp-")]


def test_jobs_start_anew_where_there_can_be_no_socket(command, tmp_path):
    deep = tmp_path / ("long" * 30)
    deep.mkdir()
    assert command(TMPDIR=str(deep))[1][FORKS] == ""


@pytest.mark.parametrize("name, value", [("PYTHONOPTIMIZE", "2"), ("PYTHONWARNINGS", "always")])
def test_jobs_start_anew_where_python_was_told_what_is_not_for_them(command, name, value):
    assert command(**{name: value})[1][FORKS] == ""


def test_jobs_start_anew_where_nobody_can_be_asked(tmp_path):
    nobody = {FORKS: str(tmp_path / "nobody")}
    assert "torch" not in as_job(nobody, tmp_path, WHO, stdout=PIPE).communicate()[0]


# -- a job's notebook

JOB = """
from pathlib import Path
from ssv2_report.jobs import notebooks
notebooks.project_root = Path.cwd
notebooks.run_notebook("book", Path("out.ipynb"))
"""


def run(told, tmp_path, source, **kw):
    "A job that executes a notebook of one cell."
    path = tmp_path / "nbs" / "book.ipynb"
    path.parent.mkdir(exist_ok=True)
    path.write_text(writes(new_notebook(cells=[new_code_cell(source)])))
    return as_job(told, tmp_path, JOB, **kw)


def test_a_notebook_runs_in_its_job(told, tmp_path):
    job = run(
        told,
        tmp_path,
        "import os, sys; print('torch' in sys.modules, os.getcwd())\n"
        "import matplotlib.pyplot as plt; plt.plot([0, 1])\nprint(plt.get_backend())",
    )
    assert job.wait() == 0
    said = (tmp_path / "out.ipynb").read_text()
    assert f"True {tmp_path / 'nbs'}" in said and "image/png" in said and "inline" in said


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), signal.SIGKILL)", "os._exit(0)"])
def test_a_notebook_whose_job_dies_is_there_as_far_as_it_ran(told, tmp_path, end):
    source = f"import os, signal, sys; print('at 7', file=sys.__stderr__, flush=True); {end}"
    job = run(told, tmp_path, source, stderr=PIPE)
    said = job.communicate()[1]
    assert "at 7" in said and "was ended by SIGKILL" in said and job.returncode == 137
    assert not (tmp_path / "out.ipynb").exists()
    assert json.loads((tmp_path / "out.failed.ipynb").read_text())["cells"]
