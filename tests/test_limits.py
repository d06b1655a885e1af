"What a machine does not give, such as cores, memory, room on a disk, ends in a sentence or is done without."

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from books import run_as_job
from nbformat.v4 import new_code_cell, new_notebook, writes
from safetensors.torch import save_file

from ssv2_report import cli
from ssv2_report.data import basics
from ssv2_report.data.basics import atomic_write, usable_cores
from ssv2_report.jobs import notebooks

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

# -- cores and threads


def files(folder, texts):
    for path, text in texts.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)


@pytest.mark.parametrize(
    "own, mounted, cores",
    [
        (
            "0::/\n",
            {"cpu.max": "250000 100000\n"},
            2.5,
        ),  # a container, which sees its own as the top
        ("0::/\n", {"cpu.max": "max 100000\n"}, float("inf")),
        (
            "0::/jobs/mine\n",
            {"jobs/cpu.max": "150000 100000\n", "jobs/mine/cpu.max": "400000 100000\n"},
            1.5,
        ),
        ("", {}, float("inf")),
    ],
)
def test_a_quota_of_cores_is_found_where_control_groups_keep_it(own, mounted, cores, tmp_path):
    files(tmp_path, {"own": own} | {f"mounted/{path}": text for path, text in mounted.items()})
    assert basics.quota_of_cores(tmp_path / "mounted", tmp_path / "own") == cores


@pytest.mark.parametrize("quota, cores", [(0.5, 1), (1.5, 2), (2, 2), (100, 6), (float("inf"), 6)])
def test_cores_to_use_are_within_the_quota(quota, cores, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(6), raising=False)
    monkeypatch.setattr(basics, "quota_of_cores", lambda: quota)
    assert usable_cores() == cores


@pytest.mark.parametrize("wish, threads", [("2,1", 2), ("3", 3), (" 2 , 1", 2)])
def test_threads_may_be_asked_for_at_each_level(wish, threads, monkeypatch):
    from ssv2_report.study.experiments import load_study
    from ssv2_report.train import loaders, use_threads

    monkeypatch.setenv("OMP_NUM_THREADS", wish)
    before = torch.get_num_threads()
    try:
        use_threads()
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    exp = load_study("smoke").experiments["2d-multi"].model_copy(update=dict(workers=None))
    assert loaders(exp) == threads - 1


@pytest.mark.parametrize("wish", ["two", "0", "-1", "1.5"])
def test_threads_that_are_no_number_are_one_sentence(wish, monkeypatch):
    from ssv2_report.train import use_threads

    monkeypatch.setenv("OMP_NUM_THREADS", wish)
    with pytest.raises(ValueError, match=f"^OMP_NUM_THREADS is '{wish}'; give a number of threads"):
        use_threads()


# -- shared memory


class Clips(torch.utils.data.Dataset):
    ids = [str(i) for i in range(8)]

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, i):
        return dict(clip=torch.full((3, 8, 64, 64), float(i)), target=0)


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.ones(2))

    def forward(self, x):
        return x.mean((1, 2, 3, 4))[:, None] * self.w


def test_where_shared_memory_is_small_no_worker_is_started(monkeypatch, tmp_path):
    from ssv2_report.study import scores

    usage, asked, loader = shutil.disk_usage(tmp_path), [], scores.DataLoader
    monkeypatch.setattr(scores, "SHARED", str(tmp_path))  # as there is no /dev/shm on every system
    monkeypatch.setattr(
        scores, "DataLoader", lambda *a, **kw: asked.append(kw["num_workers"]) or loader(*a, **kw)
    )
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=64_000_000))
    assert len(scores.predict(Net(), Clips(), 2, 1)) == 8
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=2_000_000))
    with pytest.warns(UserWarning, match="need 2.4 MB of shared memory .* has 2.0 MB free: clips"):
        assert len(scores.predict(Net(), Clips(), 2, 1)) == 8
    assert asked == [1, 0]


@pytest.mark.parametrize(
    "said, sentence",
    [
        (
            "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's "
            "workers are out of shared memory. Please try to raise your shared memory limit.",
            "finds no room in shared memory .* MB are free.*set workers to fewer, or to 0",
        ),
        (
            "unable to write to file </torch_7_1>: No space left on device (28)",
            "finds no room in shared memory",
        ),
        (
            "DataLoader worker (pid 7) is killed by signal: Killed.",
            "was ended for want of memory, .*workers to fewer",
        ),
        ("a size does not fit", "^a size does not fit$"),
    ],
)
def test_a_lost_worker_is_one_sentence(said, sentence):
    from ssv2_report.train import explain_oom

    with pytest.raises((ValueError, RuntimeError), match=sentence):
        with explain_oom(None):
            try:
                raise RuntimeError(said)
            except RuntimeError as e:
                if "pid 7" in said:  # as PyTorch does
                    raise RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly") from e
                raise


IN_SMALL = """
mount -t tmpfs -o size=2m tmpfs /dev/shm && exec "$@"
"""
LOADS = f"""
import sys, warnings
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_limits import Clips, Net
from ssv2_report.study import scores
if sys.argv[1] == "unasked":
    scores.with_room = lambda workers, *_: workers
warnings.simplefilter("ignore")
try:
    print(len(scores.predict(Net(), Clips(), 4, 2)))
except ValueError as e:
    print(e)
"""


@pytest.mark.slow
@pytest.mark.parametrize("how, said", [("asked", "8\n"), ("unasked", "The processes that load cl")])
def test_in_a_container_with_2_mb_of_shared_memory(how, said):
    small = ["unshare", "-m", "sh", "-c", IN_SMALL, "sh"]
    if (
        not shutil.which("unshare")
        or subprocess.run([*small, "true"], capture_output=True).returncode
    ):
        pytest.skip("nothing may be mounted here")
    done = subprocess.run(
        [*small, sys.executable, "-c", LOADS, how], capture_output=True, text=True
    )
    assert done.stdout.startswith(said), done.stderr


# -- files


@pytest.mark.parametrize("umask, mode", [(0o022, 0o644), (0o027, 0o640), (0o002, 0o664)])
def test_weights_are_for_those_to_read_whom_the_umask_lets(umask, mode, tmp_path):
    before = os.umask(umask)
    try:
        with atomic_write(tmp_path / "weights.safetensors") as part:
            save_file(dict(w=torch.ones(2)), part)
        with atomic_write(tmp_path / "table.csv") as part:
            part.write_text("a")
    finally:
        os.umask(before)
    assert {p.stat().st_mode & 0o777 for p in tmp_path.iterdir()} == {mode}


@pytest.fixture
def book(tmp_path, monkeypatch):
    "Run code as a notebook of a project of its own."
    monkeypatch.setattr(notebooks, "project_root", lambda: tmp_path)
    (tmp_path / "nbs").mkdir()

    def book(source, run=run_as_job):
        (tmp_path / "nbs" / "book.ipynb").write_text(
            writes(new_notebook(cells=[new_code_cell(source)]))
        )
        run(tmp_path, "book", tmp_path / "results" / "out.ipynb")

    return book


TAKES_NO_MORE = (
    r"The disk of {} takes no more \([\d,]+ MB are free, and there may be a quota\): free"
)


@pytest.mark.parametrize(
    "kind", ["OSError(28, 'No space left on device')", "OSError(122, 'Disk quota exceeded')"]
)
def test_a_disk_that_fills_in_a_notebook_is_named_by_its_folder(kind, book, tmp_path):
    with pytest.raises(ValueError, match=TAKES_NO_MORE.format(f"{tmp_path}/results")):
        book(f"raise {kind}")


def test_a_disk_that_fills_as_a_notebook_is_written_is_named(book, tmp_path, monkeypatch):
    import papermill

    def execute(*a, **kw):
        raise FULL

    monkeypatch.setattr(papermill, "execute_notebook", execute)
    with pytest.raises(OSError, match=TAKES_NO_MORE.format(f"{tmp_path}/results")):
        book("", run=lambda root, *args: notebooks.run_notebook(*args))


@pytest.mark.parametrize(
    "raised, says",
    [(FULL, None), (OSError(13, "Permission denied"), r"^\[Errno 13\] Permission denied")],
)
def test_a_disk_that_fills_anywhere_in_a_job_is_named(tmp_path, monkeypatch, raised, says):
    from ssv2_report.jobs import execute
    from ssv2_report.jobs.steps import Job
    from ssv2_report.study.experiments import load_study, write_study

    def draw(*_):
        raise raised

    study = load_study("smoke")
    study.data.root = str(tmp_path / "data")
    monkeypatch.setitem(execute.WITHOUT_NOTEBOOK, "demo_data", draw)
    with pytest.raises(OSError, match=says or TAKES_NO_MORE.format(tmp_path / "out")):
        execute.do_job(str(write_study(study, tmp_path)), Job("demo_data"), tmp_path / "out")


def test_a_disk_that_fills_anywhere_in_the_command_is_one_sentence(monkeypatch, capsys, tmp_path):
    def app(prog_name):
        raise FULL

    monkeypatch.delenv("SSV2_COMMAND", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "app", app)
    with pytest.raises(SystemExit) as e:
        cli.main()
    said = capsys.readouterr().err
    assert e.value.code == 1 and said.startswith(f"ssv2: The disk of {tmp_path} takes no more (")
    assert said.count("\n") == 1


def test_a_disk_that_fills_as_clips_are_cached_is_named(tmp_path, monkeypatch):
    from ssv2_report.data import cache

    def shard(folder):
        raise FULL

    monkeypatch.setattr(cache, "_Shard", shard)
    said = cache._add("1", "clip.webm", tmp_path, 32, "raw")
    assert said.startswith(f"The disk of {tmp_path} takes no more (")


IN_TINY = """
mkdir -p "$1" && mount -t tmpfs -o size=300k tmpfs "$1" || exit 99
exec "$2" -m ssv2_report.command demo-data "$1/world" --train-per-class 2 --val-per-class 1
"""


@pytest.mark.slow
def test_a_disk_that_is_really_full_is_one_sentence(tmp_path):
    command = ["unshare", "-m", "sh", "-c", IN_TINY, "sh", tmp_path / "tiny", sys.executable]
    if not shutil.which("unshare"):
        pytest.skip("nothing may be mounted here")
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 99 or "unshare" in done.stderr:
        pytest.skip("nothing may be mounted here")
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"ssv2: The disk of {tmp_path}/tiny/world"), done.stderr
