"Notebooks run by forks of a process that has imported what takes long, by IPython as nbdev runs them."

import gc
import os
import tempfile
import traceback

from forked import FORKS, fork


def _run(path, folder, out, place, parameters):
    import nbformat
    import torch
    from execnb.nbio import dict2nb, nb2dict
    from execnb.shell import CaptureShell
    from papermill.iorw import load_notebook_node
    from papermill.parameterize import parameterize_notebook

    gc.freeze()
    os.environ.update(OMP_NUM_THREADS="1", TMPDIR=str(folder))
    tempfile.tempdir = None
    torch.set_num_threads(1)
    os.chdir(place)
    try:
        nb = load_notebook_node(str(path))
        if parameters:
            nb = parameterize_notebook(nb, parameters, kernel_name="python3", language="python")
        nb = dict2nb(nb)
        CaptureShell(path).run_all(nb, exc_stop=True)
        if out:
            nbformat.write(nbformat.from_dict(nb2dict(nb)), out)
    except BaseException:
        (folder / "wrong.txt").write_text(traceback.format_exc())
        raise


def run_book(path, folder, out=None, place=None, **parameters):
    "Run a notebook from top to bottom, at `place` or where it lies; AssertionError with what went wrong."
    process = fork(_run, path, folder, out, place or path.parent, parameters)
    process.join(400)
    if process.exitcode is None:
        process.kill()
    wrong = folder / "wrong.txt"
    said = wrong.read_text()[-3000:] if wrong.exists() else f"exit code {process.exitcode}"
    assert process.exitcode == 0, said


def _run_as_job(root, name, out, gpus, env, parameters, told):
    from ssv2_report.jobs import notebooks

    notebooks.project_root = lambda: root
    os.environ.clear()
    os.environ.update(env)
    tempfile.tempdir = None
    try:
        notebooks.run_notebook(name, out, gpus, **parameters)
        told.send(None)
    except (ValueError, OSError) as e:
        told.send(e)


def run_as_job(root, name, out, gpus=0, **parameters):
    "`run_notebook` for a project at `root` in a process of its own, as in a job; raises what it does."
    heard, told = FORKS.Pipe(False)
    process = fork(_run_as_job, root, name, out, gpus, dict(os.environ), parameters, told)
    told.close()
    try:
        error = heard.recv()
    except EOFError:
        error = ChildProcessError("the job said nothing")
    process.join()
    if error:
        raise error
