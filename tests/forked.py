"Processes of tests are forks of one that has imported what takes seconds."

from multiprocessing import get_context

FORKS = get_context("forkserver")
IMPORTED = [
    *("torch", "timm", "accelerate", "scipy.stats", "matplotlib.pyplot", "pandas"),
    *("execnb.shell", "papermill", "ssv2_report.train", "ssv2_report.analysis.cases"),
    *("ssv2_report.gradcam.explorer", "ssv2_report.report.site"),
]


def fork(target, *args, **kwargs):
    "A process that has begun to call `target`; a test process has one process to fork for all its tests."
    FORKS.set_forkserver_preload(IMPORTED)
    process = FORKS.Process(target=target, args=args, kwargs=kwargs)
    process.start()
    return process
