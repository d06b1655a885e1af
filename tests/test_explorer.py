"The explorer under code's hand: what changes, how fast, and what it says."
import time

import numpy as np
import torch
from torch import nn

from ssv2_report.explorer import explorer


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.block, self.conv, self.fc = nn.Conv3d(3, 6, 3, padding=1), nn.Conv3d(6, 6, 3, padding=1), nn.Conv3d(6, 6, 1), nn.Linear(6, 4)

    def forward(self, clip): return self.fc(self.conv(self.block(self.stem(clip).relu()).relu()).relu().mean((2, 3, 4)))


def test_the_explorer_redraws_quickly_and_from_kept_maps():
    space, flat, calls = Net(), Net(), []
    space.register_forward_hook(lambda *a: calls.append(1))
    rng = np.random.default_rng(0)
    clips = {k: dict(clip=torch.randn(3, n, 16, 16), frames=rng.integers(0, 256, (n, 16, 16, 3), np.uint8),
                     hand=np.ones((n, 16, 16), bool), object=np.zeros((n, 16, 16), bool)) for k, n in (("one", 8), ("two", 4))}
    box = explorer(clips, {"a": space, "b": flat}, {"a": ["block", "stem"], "b": ["conv"]}, list("wxyz"))
    c = box.controls

    def change(**kw):
        before = c["left_image"].value, c["right_image"].value
        for k, v in kw.items(): c[k].value = v
        return before[0] != c["left_image"].value, before[1] != c["right_image"].value

    assert change(frame=3) == (True, True) and len(calls) == 1
    assert change(target=2)[0] and change(versus=1)[0] and change(method="hirescam")[0] and change(opacity=0.2)[0] and change(boxes=False)[0]
    assert change(left_layer="stem") == (True, False)
    assert change(left_model="b") == (True, False) and c["left_layer"].value == "conv" and c["left_image"].value == c["right_image"].value
    assert change(clip="two") == (True, True) and c["frame"].max == 3 == c["play"].max
    n, fastest = len(calls), 9.
    for t in (0, 1, 2):
        start = time.perf_counter()
        change(frame=t)
        fastest = min(fastest, time.perf_counter() - start)
    assert len(calls) == n and fastest < 0.1
    assert any(k in c["left_text"].value for k in "wxyz")


def test_the_explorer_says_what_is_wrong_and_goes_on():
    space = Net()
    clips = {"one": dict(clip=torch.full((3, 4, 8, 8), torch.nan), frames=np.zeros((4, 8, 8, 3), np.uint8))}
    box = explorer(clips, {"a": space}, {"a": ["block"]}, list("wxyz"))
    assert "not finite" in box.controls["left_text"].value and bytes(box.controls["left_image"].value).startswith(b"\x89PNG")
