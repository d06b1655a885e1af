"Kernels that are forks of a process which has imported what takes seconds."

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from nbformat.v4 import new_code_cell, new_notebook, writes

from ssv2_report.jobs import notebooks
from ssv2_report.jobs.forks import FORKS, forks
from ssv2_report.jobs.notebooks import run_notebook

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere kernels start anew")


@pytest.fixture(scope="module")
def told():
    with forks() as told:
        assert until(Path(told[FORKS]).exists), "it is ready"
        yield told


@pytest.fixture
def run(told, tmp_path, monkeypatch):
    "Run a cell as a notebook of a project of its own; what it printed."
    monkeypatch.setattr(notebooks, "project_root", lambda: tmp_path)
    monkeypatch.setenv(FORKS, told[FORKS])

    def run(source):
        path = tmp_path / "nbs" / "book.ipynb"
        path.parent.mkdir(exist_ok=True)
        path.write_text(writes(new_notebook(cells=[new_code_cell(source)])))
        run_notebook("book", tmp_path / "out.ipynb")
        return (tmp_path / "out.ipynb").read_text()

    return run


def until(true, seconds=90):
    "Wait until something is so, and say whether it is."
    end = time.time() + seconds
    while not true() and time.time() < end:
        time.sleep(0.05)
    return true()


def gone(pid):
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_a_kernel_is_a_fork_with_the_jobs_own_place_and_variables(run, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("SSV2_OF_THIS_JOB", "its own")
    said = run(
        "import os, sys; early = {'torch', 'timm', 'ssv2_report.train'} & {*sys.modules}\n"
        "import torch; print(sorted(early), torch.get_num_threads(), os.environ['SSV2_OF_THIS_JOB'])\n"
        "import matplotlib.pyplot as plt; plt.plot([0, 1])\n"
        "print(os.getcwd(), plt.get_backend())"
    )
    assert "['timm', 'torch'] 3 its own" in said and str(tmp_path / "nbs") in said
    assert "image/png" in said and "inline" in said, "figures are shown"


def test_forks_draw_their_own_numbers(run):
    source = "import numpy, random; print('drawn', numpy.random.rand(), random.random())"
    drawn = [run(source).split("drawn ")[1].split("\\n")[0].split() for _ in range(2)]
    assert drawn[0][0] != drawn[1][0] and drawn[0][1] != drawn[1][1]


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), signal.SIGKILL)", "os._exit(0)"])
def test_a_fork_that_dies_is_named_with_its_log(run, tmp_path, end):
    source = f"import os, signal, sys; print('at 7', file=sys.__stderr__, flush=True); {end}"
    with pytest.raises(ValueError, match="was killed or ran out of memory.*at 7"):
        run(source)
    assert "at 7" in (tmp_path / "out.log").read_text() and not (tmp_path / "out.ipynb").exists()


def test_an_error_in_a_fork_is_the_notebooks_own_sentence(run):
    with pytest.raises(ValueError, match="^book: a sentence"):
        run("raise ValueError('a sentence')")
    assert "done" in run("print('done')")


HAS = "import sys; print('has', [m for m in ('torch',) if m in sys.modules])"
JOB = """
import sys
from pathlib import Path
from ssv2_report.jobs import notebooks
notebooks.project_root = lambda: Path(sys.argv[1])
notebooks.run_notebook("book", Path(sys.argv[1]) / "out.ipynb")
"""
WAITS = """
import os, pathlib, signal, time
def save(*_):
    time.sleep(1)
    pathlib.Path("../saved").touch()
    os._exit(1)
signal.signal(signal.SIGTERM, save)
pathlib.Path("../pid").write_text(str(os.getpid()))
time.sleep(600)
"""


def test_a_fork_ends_with_its_job(told, tmp_path):
    path, pid = tmp_path / "nbs" / "book.ipynb", tmp_path / "pid"
    path.parent.mkdir()
    path.write_text(writes(new_notebook(cells=[new_code_cell(WAITS)])))
    job = subprocess.Popen([sys.executable, "-c", JOB, tmp_path], env={**os.environ, **told})
    assert until(lambda: pid.exists() and pid.read_text())
    job.kill()
    job.wait()
    assert until(lambda: gone(int(pid.read_text())))


ASKS = dict(argv=["ipykernel_launcher", "-f", "/nowhere/kernel.json"], env={}, cwd="/")


@pytest.mark.parametrize("said", ["", "{", json.dumps(ASKS) + "\n", "null\n"])
def test_a_job_that_goes_before_it_is_answered_takes_no_other_with_it(run, told, said):
    for _ in range(3):
        with socket.socket(socket.AF_UNIX) as job:
            job.connect(told[FORKS])
            job.sendall(said.encode())
    assert "has ['torch']" in run(HAS)


COMMAND = f"""
import os, subprocess, sys, time
from ssv2_report.jobs.forks import forks
with forks() as told:
    while not os.path.exists(*told.values()):
        time.sleep(0.05)
    subprocess.run([sys.executable, "-c", {JOB!r}, sys.argv[1]], env={{**os.environ, **told}})
"""


@pytest.mark.parametrize("sign", ["SIGKILL", "SIGTERM"])
def test_forks_end_with_the_command_or_with_what_they_are_forks_of(tmp_path, sign):
    path, pid = tmp_path / "nbs" / "book.ipynb", tmp_path / "pid"
    path.parent.mkdir()
    path.write_text(writes(new_notebook(cells=[new_code_cell(WAITS)])))
    command = subprocess.Popen([sys.executable, "-c", COMMAND, tmp_path], stderr=subprocess.DEVNULL)
    assert until(lambda: pid.exists() and pid.read_text())
    kernel = int(pid.read_text())
    forked_of = psutil.Process(kernel).parent()
    forked = psutil.Process(command.pid).children()[-1].environ()[FORKS]
    (command if sign == "SIGKILL" else forked_of).send_signal(getattr(signal, sign))
    assert until(lambda: gone(kernel) and gone(forked_of.pid))
    assert (tmp_path / "saved").exists(), "a training has time for its checkpoint"
    assert not Path(forked).exists()
    command.kill()
    command.wait()


def test_where_there_can_be_no_socket_kernels_start_as_ever(monkeypatch, tmp_path):
    deep = tmp_path / ("long" * 30)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    with forks() as told:
        assert told == {}


def test_without_a_process_to_fork_kernels_start_as_ever(run, monkeypatch, tmp_path):
    monkeypatch.setenv(FORKS, str(tmp_path / "nobody"))
    assert "has []" in run(HAS)


def test_a_kernel_that_is_to_hold_gpus_is_no_fork(run, monkeypatch, tmp_path):
    from contextlib import contextmanager

    @contextmanager
    def held(gpus, on_wait):
        with open(tmp_path / "slot", "w") as slot:
            yield dict(env={**os.environ}, pass_fds=[slot.fileno()])

    monkeypatch.setattr(notebooks, "held", held)
    assert "has []" in run(HAS)


def test_nothing_is_left_when_the_block_ends():
    with forks() as told:
        folder = Path(told[FORKS]).parent
        servers = [p for p in psutil.Process().children() if "serve(" in " ".join(p.cmdline())]
        server = max(servers, key=psutil.Process.create_time)  # ids begin anew at some time
        assert folder.is_dir()
    assert gone(server.pid) and not folder.exists()


def as_job(told, tmp_path, code, **kw):
    "A process that runs `code` as the workflow runs a job."
    (tmp_path / "work.py").write_text(code)
    command = [sys.executable, "-m", "ssv2_report.jobs.forks", "work", "of it"]
    env = {**os.environ, "PYTHONPATH": str(Path(notebooks.__file__).parents[2]), **told}
    return subprocess.Popen(command, cwd=tmp_path, env=env, text=True, **kw)


WHO = """
import os, sys
early = {"torch", "ssv2_report.train"} & {*sys.modules}
print(sys.argv[1:], __name__, os.getcwd(), *early)
print("an error", file=sys.stderr)
"""


@pytest.mark.parametrize(
    "end, code",
    [("", 0), ("sys.exit(3)", 3), ("sys.exit('a sentence')", 1), ("1 / 0", 1), ("os.abort()", 134)],
)
def test_a_job_is_a_fork_that_prints_and_ends_as_ever(told, tmp_path, end, code):
    pipe = subprocess.PIPE
    for found, imported in ((told, "torch"), ({}, "")):
        job = as_job(found, tmp_path, WHO + end, stdout=pipe, stderr=pipe)
        said, errors = job.communicate()
        assert said.strip() == f"['of it'] __main__ {tmp_path} {imported}".strip()
        assert "an error" in errors and ("a sentence" in errors) == ("sentence" in end)
        assert job.returncode in (code, -signal.SIGABRT if code == 134 else code)


def test_a_job_has_time_to_end_when_it_is_asked_to(told, tmp_path):
    code = WAITS.replace("../", "")
    job = as_job(told, tmp_path, code)
    pid = tmp_path / "pid"
    assert until(lambda: pid.exists() and pid.read_text())
    assert int(pid.read_text()) != job.pid
    for sign in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        job.send_signal(sign)
    assert job.wait(60) == 1 and (tmp_path / "saved").exists()


def test_a_job_that_is_killed_ends(told, tmp_path):
    job = as_job(told, tmp_path, WAITS.replace("../", ""))
    pid = tmp_path / "pid"
    assert until(lambda: pid.exists() and pid.read_text())
    job.kill()
    assert until(lambda: gone(int(pid.read_text())))


def test_a_job_that_is_killed_is_named_in_its_log(told, tmp_path):
    code = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    job = as_job(told, tmp_path, code, stderr=subprocess.PIPE)
    said = job.communicate()[1]
    assert said.startswith(
        "ssv2: `ssv2 of it` was ended by SIGKILL, as the system does for want of "
    )
    assert job.returncode == 137 and said.count("\n") == 1


STAYS = """
import os, sys, time
from ssv2_report.jobs.forks import forks
with forks() as told:
    print(*told.values(), flush=True)
    time.sleep(600)
"""


def test_a_stopped_process_to_fork_ends_with_its_command(tmp_path):
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    command = subprocess.Popen([sys.executable, "-c", STAYS], stdout=subprocess.PIPE, env=env)
    path = Path(command.stdout.readline().decode().strip())
    assert until(path.exists)
    (server,) = psutil.Process(command.pid).children()
    server.suspend()
    command.kill()
    command.communicate()
    try:
        assert until(lambda: gone(server.pid), 30)
        assert not path.parent.exists()
    finally:
        if not gone(server.pid):
            server.kill()


def test_what_killed_commands_left_is_swept_by_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    env, left = {**os.environ, "TMPDIR": str(tmp_path)}, []
    for kills in (True, False):
        command = subprocess.Popen([sys.executable, "-c", STAYS], stdout=subprocess.PIPE, env=env)
        left.append(Path(command.stdout.readline().decode().strip()).parent)
        if kills:
            for process in [*psutil.Process(command.pid).children(), command]:
                process.kill()
            command.communicate()
    for folder in left:
        os.utime(folder, (0, 0))  # long ago
    try:
        with forks():
            assert [folder.exists() for folder in left] == [False, True]
    finally:
        command.terminate()
        command.communicate()
    assert not [p for p in tmp_path.iterdir() if p.name.startswith("ssv2-")]
