"""What a user needs, imported when it is asked for: `from ssv2_report import explain, read_clip`."""

__version__ = "0.1.0"

import importlib
import sys

# For nbformat, jsonschema would compile the grammar of internationalised addresses, which no notebook
# has: 1.4 of the 2 seconds in which a job's own process starts.
sys.modules.setdefault("rfc3987_syntax", None)

_MODULES = dict(
    CAM_METHODS="gradcam.maps",
    ClipDataset="data.clips",
    create_2d="models.net2d",
    create_3d="models.net3d",
    explain="gradcam.explain",
    explorer="gradcam.explorer",
    inflate="models.net3d",
    load_index="data.clips",
    load_run="study.runs",
    load_study="study.experiments",
    make_world="demo.world",
    player="gradcam.pictures",
    read_clip="data.clips",
)
__all__ = list(_MODULES)


def __getattr__(name):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__():
    return [*__all__, "__version__"]
