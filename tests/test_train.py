"""Training resumes exactly, refuses what is not its own, and its metrics are the field's."""
import json

import numpy as np
import pandas as pd
import pytest
import torch

from ssv2_report.experiments import Experiment
from ssv2_report.train import EpochSampler, build_model, fit, load_run, metrics, predict, save_run, start_from

CLASSES = ["Folding something", "Unfolding something", "Holding something"]


class Clips(torch.utils.data.Dataset):
    "Twelve made-up clips; a class is a brightness and a direction of change."
    def __init__(self, n=12, n_frames=4): self.n, self.n_frames, self.ids, self.epoch = n, n_frames, [str(i) for i in range(n)], 0
    def set_epoch(self, epoch): self.epoch = epoch
    def __len__(self): return self.n
    def __getitem__(self, i):
        g = torch.Generator().manual_seed(1000 * self.epoch + i)
        ramp = torch.linspace(-1, 1, self.n_frames).view(1, -1, 1, 1) * (1, -1, 0)[i % 3]
        return dict(clip=torch.randn(3, self.n_frames, 32, 32, generator=g) * 0.1 + ramp, target=i % 3, id=str(i))


def experiment(**kw):
    return Experiment(**{**dict(title="t", model="test_resnet", n_frames=4, epochs=2, batch_size=4, output_stride=8), **kw})


def run(exp, out, **kw):
    return fit(exp, CLASSES, Clips(), Clips(6), out, seed=1, **kw)


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def results(out):
    return pd.read_csv(out/"history.csv").drop(columns=["seconds", "clips_per_s"])


def test_two_runs_are_equal_to_the_last_digit(tmp_path):
    a, b = (run(experiment(), tmp_path/x) for x in "ab")
    assert same(a, b)
    pd.testing.assert_frame_equal(results(tmp_path/"a"), results(tmp_path/"b"), check_exact=True)


@pytest.mark.parametrize("stop_at", [1, 2, 4])
def test_an_interrupted_run_ends_as_the_undisturbed_one(tmp_path, stop_at, monkeypatch):
    "Stopped right after a checkpoint: within the first epoch, and within the second."
    whole = run(experiment(), tmp_path/"whole", save_every=0)
    import ssv2_report.train as train
    real, saves = train.save_checkpoint, []
    def save(path, **state):
        real(path, **state); saves.append(state["step"])
        if len(saves) == stop_at: raise KeyboardInterrupt
    monkeypatch.setattr(train, "save_checkpoint", save)
    with pytest.raises(KeyboardInterrupt): run(experiment(), tmp_path/"cut", save_every=0)
    monkeypatch.setattr(train, "save_checkpoint", real)
    assert same(whole, run(experiment(), tmp_path/"cut", save_every=0))
    pd.testing.assert_frame_equal(results(tmp_path/"whole"), results(tmp_path/"cut"), check_exact=True)


def test_a_checkpoint_of_other_settings_is_refused_or_replaced(tmp_path):
    run(experiment(epochs=1), tmp_path)
    with pytest.raises(ValueError, match="of another run: lr differ"): run(experiment(epochs=1, lr=0.5), tmp_path)
    changed = run(experiment(epochs=1, lr=0.02), tmp_path, replace=True)
    assert same(changed, run(experiment(epochs=1, lr=0.02), tmp_path/"fresh"))


def test_weights_carry_their_settings_and_classes(tmp_path):
    model = run(experiment(epochs=1), tmp_path)
    again, exp, classes = load_run(tmp_path)
    assert same(model, again) and classes == CLASSES and exp == experiment(epochs=1) and not again.training


def test_a_3d_network_starts_from_the_2d_one(tmp_path):
    flat = experiment(epochs=1)
    run(flat, tmp_path/"flat")
    deep = experiment(model="i3d:test_resnet")
    model = build_model(deep, 3)
    report = start_from(model, deep, CLASSES, tmp_path/"flat")
    assert report.share > 0.9
    clip = torch.randn(2, 3, 1, 32, 32).expand(-1, -1, 4, -1, -1)
    torch.testing.assert_close(model.eval()(clip), load_run(tmp_path/"flat")[0](clip), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("change, says", [
    (dict(lr=1e9, opt="sgd", clip_grad=None, epochs=30, warmup_epochs=0), "The loss is"),
])
def test_a_loss_that_is_not_finite_stops_training(tmp_path, change, says):
    with pytest.raises(ValueError, match=says): run(experiment(**change), tmp_path)


def test_there_must_be_something_to_train_on(tmp_path):
    with pytest.raises(ValueError, match="clips in both splits"): fit(experiment(), CLASSES, Clips(), Clips(0), tmp_path)
    with pytest.raises(ValueError, match="at least two classes"): fit(experiment(), CLASSES[:1], Clips(), Clips(), tmp_path)
    with pytest.raises(FileNotFoundError, match="train this run first"): load_run(tmp_path)


def test_prediction_sees_every_clip_once_and_keeps_the_mode():
    model = build_model(experiment(), 3).train()
    p = predict(model, Clips(7), batch_size=3)
    assert list(p["id"]) == [str(i) for i in range(7)] and model.training


def test_order_of_clips_depends_on_seed_and_epoch_alone():
    a, b = EpochSampler(20, 3), EpochSampler(20, 3)
    assert list(a) == list(b) != list(EpochSampler(20, 4))
    b.skip = 8
    assert list(b) == list(a)[8:]
    b.epoch, b.skip = 1, 0
    assert list(a) != list(b) and sorted(a) == sorted(b) == list(range(20))


def test_metrics_by_hand():
    logits = [[3., 1, 0], [1, 2, 0], [0, 1, 5], [2, 1, 0]]
    m = metrics(pd.DataFrame(dict(target=[0, 0, 2, 1], logits=logits)), CLASSES)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert m["top1"] == 0.5 and m["top5"] == 1.0 and m["mean_class_accuracy"] == pytest.approx((0.5 + 0 + 1) / 3)
    assert m["pair_accuracy"] == pytest.approx(1 / 3) and m["plain_accuracy"] == 1.0
    assert m["nll"] == pytest.approx(-np.log([p[0, 0], p[1, 0], p[2, 2], p[3, 1]]).mean())
    json.dumps(m)
