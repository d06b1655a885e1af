"What is ignored stays ignored, an interruption is said, the clock may be set, and what is stopped does not stay."

import itertools
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from forked import program
from jobs import gone, until
from nbformat.v4 import new_code_cell, new_notebook, writes

from ssv2_report.machine.processes import folder_lock, is_alive, process_identity, terminating

ROOT = Path(__file__).parents[1]
linux = pytest.mark.skipif(sys.platform != "linux", reason="Linux's own")


def python(code, *words, ignored=(), **kw):
    "Run code to its end in a process that begins by ignoring some signals."

    def before():
        for sign in signal.SIGHUP, signal.SIGINT, signal.SIGTERM:
            signal.signal(sign, signal.SIG_IGN if sign in ignored else signal.SIG_DFL)

    env = {k: v for k, v in os.environ.items() if k != "SSV2_COMMAND"}
    command = [sys.executable, "-c", code, *map(str, words)]
    return subprocess.run(
        command, preexec_fn=before, capture_output=True, text=True, cwd=ROOT, env=env, **kw
    )


# -- signals

IN_NONE_LEFT = """
import os, subprocess, sys
from ssv2_report.machine.processes import terminating
with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as p:
    with terminating(p, grace=0.5):
        os.kill(os.getpid(), int(sys.argv[1]))
        print("goes on")
"""
IN_COMMAND = """
import os, sys
from ssv2_report import cli

@cli.app.command()
def hit(number: int):
    os.kill(os.getpid(), number)
    print("goes on")

sys.argv = ["ssv2", "hit", sys.argv[1]]
cli.main()
"""


@pytest.mark.parametrize("code", [IN_NONE_LEFT, IN_COMMAND], ids=["none_left", "command"])
@pytest.mark.parametrize("sign", [signal.SIGHUP, signal.SIGINT, signal.SIGTERM])
def test_what_is_ignored_at_the_start_stays_ignored(code, sign):
    "As `nohup` does with SIGHUP, and a shell with SIGINT of what it puts into the background."
    done = python(code, int(sign), ignored=[sign])
    assert done.returncode == 0 and done.stdout == "goes on\n", done.stderr


@pytest.mark.parametrize(
    "sign, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_an_interruption_is_said_and_is_the_exit_code(sign, code):
    done = python(IN_COMMAND, int(sign))
    said = "ssv2: interrupted; the same command goes on where it stopped.\n"
    assert (done.returncode, done.stdout, done.stderr) == (code, "", said)


TRAINS = """
import os
from types import SimpleNamespace
from ssv2_report.train import raise_stopped, until_interrupted

with until_interrupted() as asked:
    os.kill(os.getpid(), number)
    assert asked.wait(60)
    raise_stopped(SimpleNamespace(asked=asked, step=3, steps=4, exp=SimpleNamespace(epochs=2)))
"""
IN_A_NOTEBOOK = """
import signal, sys
from pathlib import Path

signal.signal(signal.SIGINT, signal.default_int_handler)
for sign in signal.SIGTERM, signal.SIGHUP:
    signal.signal(sign, signal.SIG_DFL)

from ssv2_report import cli
from ssv2_report.jobs import notebooks

folder = Path(sys.argv.pop())
notebooks.project_root = lambda: folder

@cli.app.command()
def hit(number: int):
    notebooks.run_notebook("book", folder / "out.ipynb", number=number)

sys.argv.insert(1, "hit")
cli.main()
"""


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_training_called_by_hand_writes_its_checkpoint_whatever_interrupts_it(sign, tmp_path):
    cells = [new_code_cell("number = 0", metadata=dict(tags=["parameters"])), new_code_cell(TRAINS)]
    (tmp_path / "nbs").mkdir()
    (tmp_path / "nbs" / "book.ipynb").write_text(writes(new_notebook(cells=cells)))
    (tmp_path / "script.py").write_text(IN_A_NOTEBOOK)
    env = {k: v for k, v in os.environ.items() if k != "SSV2_COMMAND"}
    done = program(tmp_path / "script.py", int(sign), tmp_path, env=env)
    said = f"ssv2: book: Stopped by {sign.name} at step 3 of 8; the checkpoint is written, and "
    assert done.stderr.startswith(said) and done.stderr.count("\n") == 1
    assert done.returncode == 128 + sign


# -- the clock


@linux
def test_a_step_of_the_clock_makes_no_other_process_of_one(monkeypatch):
    who = process_identity(os.getpid())
    began = psutil._pslinux.boot_time()
    monkeypatch.setattr("psutil._pslinux.boot_time", lambda: began + 3600)
    assert is_alive(who) and process_identity(os.getpid()) == who


@linux
def test_a_process_of_any_name_has_an_identity():
    code = "import ctypes; ctypes.CDLL(None).prctl(15, b'a) b (c'); print('named', flush=True); input()"
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe) as process:
        process.stdout.readline()
        assert psutil.Process(process.pid).name() == "a) b (c"
        who = process_identity(process.pid)
        ticks = int(who.split(":")[1].split("@")[0])
        assert abs(ticks / os.sysconf("SC_CLK_TCK") - time.clock_gettime(time.CLOCK_BOOTTIME)) < 60
        assert is_alive(who)
        process.communicate(b"\n")
    assert not is_alive(who)


PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
print(child.pid, flush=True)
child.wait()
"""


@linux
def test_what_was_started_is_found_while_the_clock_goes_backwards(monkeypatch):
    began, steps = psutil._pslinux.boot_time(), itertools.count()
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE) as process:
        child = int(process.stdout.readline())
        monkeypatch.setattr("psutil._pslinux.boot_time", lambda: began - next(steps))
        try:
            with terminating(process):
                pass
            assert gone(child)
        finally:
            if not gone(child):
                os.kill(child, signal.SIGKILL)


def test_durations_do_not_follow_the_clock(monkeypatch, tmp_path, capsys):
    from ssv2_report.jobs.execute import ProgressLines
    from ssv2_report.jobs.workflow import Tracker
    from ssv2_report.train import update_timer

    tracker, steps = Tracker({}, {}, cores=2), ProgressLines("clips")
    run = SimpleNamespace(spent=dict(train=0.0), since=time.monotonic())
    event = dict(event="job_info", jobid=1, job_id=None, rule_name="audit", wildcards={}, log=None)
    tracker.feed(event)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 3600)
    assert tracker.feed(event | dict(event="job_finished")) == "finished audit in 0 s"
    steps(1, 1)
    assert "clips 1/1, 0 s" in capsys.readouterr().err
    update_timer(run)
    assert run.spent["train"] < 60


# -- stopped processes

SAVES = """
import pathlib, signal, sys, time
def save(*_):
    pathlib.Path(sys.argv[1]).touch()
    sys.exit()
signal.signal(signal.SIGTERM, save)
print("ready", flush=True)
time.sleep(600)
"""


def test_a_stopped_process_is_ended_with_its_time_for_a_checkpoint(tmp_path):
    command = [sys.executable, "-c", SAVES, tmp_path / "saved"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        process.send_signal(signal.SIGSTOP)
        with terminating(process, grace=20):
            pass
    assert (tmp_path / "saved").exists() and process.returncode == 0


STEP = f"""
import os, subprocess, sys
from ssv2_report.machine.processes import exit_with_command
exit_with_command(every=0.05, grace=20)
child = subprocess.Popen([sys.executable, "-c", {SAVES!r}, sys.argv[1]], stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
child.wait()
"""


@linux
@pytest.mark.parametrize("whom", ["child", "step"])
def test_what_is_stopped_ends_with_the_command_as_well(whom, tmp_path):
    "A step that is stopped cannot see that its command is gone."
    begin = f"""
import os, subprocess, sys
from ssv2_report.machine.processes import process_identity
os.environ["SSV2_COMMAND"] = process_identity(os.getpid())
step = subprocess.Popen([sys.executable, "-c", {STEP!r}, sys.argv[1]])
print(step.pid, flush=True)
step.wait()
"""
    command = subprocess.Popen(
        [sys.executable, "-c", begin, tmp_path / "saved"], stdout=subprocess.PIPE, text=True
    )
    step, child = (int(command.stdout.readline()) for _ in range(2))
    try:
        os.kill(dict(child=child, step=step)[whom], signal.SIGSTOP)
        command.kill()
        command.wait()
        assert until(lambda: gone(child) and gone(step), 30)
        assert (tmp_path / "saved").exists()
    finally:
        command.stdout.close()
        for pid in (child, step):
            if not gone(pid):
                os.kill(pid, signal.SIGKILL)


# -- locks


def test_a_link_is_no_lock(tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / ".lock").symlink_to(tmp_path / "made")
    with pytest.raises(OSError, match=r"results/\.lock"):
        with folder_lock(tmp_path / "results"):
            pass
    assert not (tmp_path / "made").exists()


def test_a_colleagues_lock_is_named_with_its_owner():
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        lock, (read, write) = Path(folder, ".lock"), os.pipe()
        lock.touch(0o444)
        if not (pid := os.fork()):
            try:
                if not os.getuid():
                    os.setuid(65534)
                with folder_lock(Path(folder)):
                    os.write(write, b"held")
            except BaseException as e:
                os.write(write, str(e).encode())
            os._exit(0)
        os.waitpid(pid, 0)
        said = os.read(read, 10_000).decode()
        assert said == (
            f"{lock}, by which one process at a time works there, belongs to {lock.owner()}, and you "
            "may not write to it; ask for that, or choose another folder."
        )
