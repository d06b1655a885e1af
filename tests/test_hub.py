"""Networks of transformers are taken as they are, their tokens where their pixels are, or refused in a sentence."""

import json
import re
from functools import cache
from importlib import metadata

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from ssv2_report import cli
from ssv2_report.gradcam import rollout
from ssv2_report.gradcam.baselines import random_network
from ssv2_report.gradcam.sources import cam_sources, make_maps
from ssv2_report.models import hub
from ssv2_report.models.hub import create_hub, load_hub, quarters
from ssv2_report.models.known import KNOWN, clip_of
from ssv2_report.models.net2d import channels_last, cost, stages
from ssv2_report.study.experiments import Experiment, load_study, project_root
from ssv2_report.study.networks import adopted_model, load_reference, write_reference

transformers = pytest.importorskip("transformers")

CLASSES = [f"Doing {k} to something" for k in range(5)]
IMAGENET = dict(image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225])
SMALL = dict(hidden_size=24, num_hidden_layers=4, num_attention_heads=2, intermediate_size=48)
FRAMES = dict(num_frames=4, image_size=32)
CONFIGS = dict(
    videomae=dict(**SMALL, **FRAMES, patch_size=8),
    timesformer=dict(**SMALL, **FRAMES, patch_size=8),
    vivit=dict(**SMALL, **FRAMES, tubelet_size=[2, 8, 8]),
    vjepa2=dict(
        **{k: v for k, v in SMALL.items() if k != "intermediate_size"},
        **dict(frames_per_clip=4, crop_size=32, patch_size=8, num_pooler_layers=1),
        **dict(pred_hidden_size=24, pred_num_hidden_layers=1, pred_num_attention_heads=2),
    ),
)
EVERY = pytest.mark.parametrize("family", CONFIGS)


@cache
def made(family, names):
    "A network of a family with all its weights drawn."
    torch.manual_seed(0)
    config = transformers.CONFIG_MAPPING[family](
        **CONFIGS[family], id2label={k: name for k, name in enumerate(names)}
    )
    net = transformers.AutoModelForVideoClassification.from_config(config).eval()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return net


def tiny(family, folder, names=CLASSES):
    "Such a network, which no test changes, saved as transformers does."
    net = made(family, tuple(names))
    net.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(IMAGENET))
    return net


@EVERY
def test_logits_are_those_of_transformers(tmp_path, family):
    theirs = tiny(family, tmp_path)
    ours, x = load_hub(tmp_path), torch.randn(2, 3, 4, 32, 32)
    with torch.no_grad():
        expected = theirs(**{theirs.main_input_name: x.transpose(1, 2)}).logits
        torch.testing.assert_close(ours(x), expected, rtol=0, atol=1e-6)
        torch.testing.assert_close(channels_last(ours)(x), expected, rtol=0, atol=1e-6)


@EVERY
def test_a_network_that_knows_other_colours_sees_them(tmp_path, family):
    tiny(family, tmp_path)
    half = dict(image_mean=[0.45] * 3, image_std=[0.225] * 3)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(half))
    pixels, plain = torch.rand(1, 3, 4, 32, 32), load_hub(tmp_path, ((0.45,) * 3, (0.225,) * 3))
    mean, std = (torch.tensor(IMAGENET[k]).view(3, 1, 1, 1) for k in ("image_mean", "image_std"))
    with torch.no_grad():
        known = plain.net(**{plain.net.main_input_name: ((pixels - 0.45) / 0.225).transpose(1, 2)})
        torch.testing.assert_close(load_hub(tmp_path)((pixels - mean) / std), known.logits)


@EVERY
def test_every_cell_of_the_first_block_sees_its_own_pixels(tmp_path, family):
    "With attention and MLP of the first block silent, a cell follows its own patch alone."
    tiny(family, tmp_path)
    net = load_hub(tmp_path)
    block = net.net.get_submodule(hub.FAMILIES[family].blocks)[0]
    with torch.no_grad():
        for module in block.modules():
            if isinstance(module, torch.nn.Linear):
                module.weight.zero_()
                module.bias.zero_() if module.bias is not None else None
        x, seen = torch.randn(1, 3, 4, 32, 32), []
        block.tokens.map.register_forward_hook(lambda m, args, out: seen.append(out[0]))
        net(x)
        t, h, w = seen[0].shape[1:]
        tube = 4 // t
        for cell in ((0, 0, 1), (t - 1, 3, 2), (0, 2, 0)):
            other = x.clone()
            k, i, j = cell
            other[:, :, k * tube : (k + 1) * tube, i * 8 : i * 8 + 8, j * 8 : j * 8 + 8] += 1
            net(other)
            moved = (seen[-1] - seen[0]).abs().sum(0) > 1e-6
            assert moved.nonzero().tolist() == [list(cell)]


@EVERY
def test_other_clips_are_refused(tmp_path, family):
    tiny(family, tmp_path)
    net = load_hub(tmp_path)
    for shape in ((2, 32, 32), (8, 32, 32), (4, 64, 64), (4, 16, 16)):
        with pytest.raises(ValueError, match="takes clips of 4 x 32 x 32"):
            net(torch.zeros(1, 3, *shape))


@EVERY
@pytest.mark.parametrize("change", ["missing", "unknown", "shape", "cut"])
def test_files_that_do_not_fit_are_refused(tmp_path, family, change):
    tiny(family, tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    key = next(k for k in state if "layer" in k and k.endswith("bias") and "predictor" not in k)
    if change == "missing":
        del state[key]
    if change == "unknown":
        state[key + "_of_another"] = torch.zeros(1)
    if change == "shape":
        state[key] = torch.zeros(7)
    save_file(state, tmp_path / "model.safetensors", metadata=dict(format="pt"))
    if change == "cut":
        whole = (tmp_path / "model.safetensors").read_bytes()
        (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="does not fit its own configuration|cannot be loaded"):
        load_hub(tmp_path)


def test_dropped_biases_of_queries_and_values_are_refused(tmp_path):
    "As the versions 5.8 to 5.16 of transformers load it: without q_bias and v_bias."
    tiny("videomae", tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    kept = {k: v for k, v in state.items() if not k.endswith(("q_bias", "v_bias"))}
    assert len(kept) == len(state) - 8
    save_file(kept, tmp_path / "model.safetensors", metadata=dict(format="pt"))
    with pytest.raises(ValueError, match="missing keys"):
        load_hub(tmp_path)


def test_versions_that_drop_them_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "version", lambda name: "5.16.1")
    with pytest.raises(ValueError, match="pip install 'transformers>=5.18'"):
        load_hub(tmp_path)
    assert tuple(map(int, metadata.version("transformers").split(".")[:2])) >= hub.OLDEST


def test_the_extra_is_named_where_the_library_is_missing(monkeypatch):
    import builtins

    real = builtins.__import__

    def without(name, *args, **kw):
        if name == "transformers":
            raise ImportError(name)
        return real(name, *args, **kw)

    hub._transformers.cache_clear()
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match=r"pip install 'ssv2_report\[hub\]'"):
        load_hub("anywhere")
    hub._transformers.cache_clear()


@EVERY
def test_classes_are_found_by_their_bracketed_names(tmp_path, family):
    order = [3, 0, 4, 1, 2]
    names = [CLASSES[k].replace("something", "[something]") for k in order]
    theirs = tiny(family, tmp_path, names)
    exp = Experiment(title="t", model=f"hf:{tmp_path}", n_frames=4, size=32)
    ours, head = adopted_model(exp, CLASSES[1:4], CLASSES)
    x = torch.randn(1, 3, 4, 32, 32)
    with torch.no_grad():
        answers = theirs(**{theirs.main_input_name: x.transpose(1, 2)}).logits
        named = answers[:, [order.index(k) for k in (1, 2, 3)]]
        torch.testing.assert_close(ours(x), named, rtol=0, atol=1e-6)
    assert head == [CLASSES[k] for k in order]
    write_reference(tmp_path / "run", exp, CLASSES[1:4], head)
    again, _, _ = load_reference(tmp_path / "run" / "reference.json")
    torch.testing.assert_close(again(x), ours(x), rtol=0, atol=1e-6)


def test_a_network_in_the_hubs_cache_is_taken_without_a_network(tmp_path, monkeypatch):
    commit = "a" * 40
    folder = tmp_path / "models--someone--net" / "snapshots" / commit
    folder.mkdir(parents=True)
    theirs = tiny("vivit", folder)
    (folder.parents[1] / "refs").mkdir()
    (folder.parents[1] / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    exp = Experiment(title="t", model="hf:someone/net", n_frames=4, size=32)
    net, head = adopted_model(exp, CLASSES, CLASSES)
    kept = write_reference(tmp_path / "run", exp, CLASSES, head)
    assert kept["path"] == str(folder)  # so that its revision stays what it was
    assert torch.equal(net.net.classifier.weight, theirs.classifier.weight)
    pinned = exp.model_copy(update=dict(model=f"hf:someone/net@{commit}"))
    assert adopted_model(pinned, CLASSES, CLASSES)[1] == head


def test_a_network_that_cannot_be_fetched_is_one_sentence(tmp_path, monkeypatch):
    asked = []

    def away(repo, revision, allow_patterns, local_files_only):
        asked.append(local_files_only)
        raise ConnectionError("no route")

    monkeypatch.setattr(hub, "snapshot_download", away)
    assert hub.hub_folder("someone/net", fetch=False) is None and asked == [True]
    with pytest.raises(ValueError, match="run `ssv2 weights` where there is a network"):
        hub.hub_folder("someone/net")


def test_a_head_without_names_has_the_datasets_order(tmp_path):
    tiny("vivit", tmp_path, [f"LABEL_{k}" for k in range(5)])
    exp = Experiment(title="t", model=f"hf:{tmp_path}", n_frames=4, size=32)
    assert adopted_model(exp, CLASSES[:2], CLASSES)[1] == CLASSES


@EVERY
def test_maps_at_each_quarter_of_the_depth(tmp_path, family):
    tiny(family, tmp_path)
    net, x = load_hub(tmp_path), torch.randn(2, 3, 4, 32, 32)
    sources = [f"{place}:{cam}" for place in stages(net) for cam in ("gradcam", "layercam")]
    maps, _ = make_maps(net, x, [0, 1], [*sources, "occlusion"])
    t = 4 if family == "timesformer" else 2
    assert "layer4" in stages(net)
    for source in sources:
        assert maps[source].shape == (2, t, 4, 4) and maps[source].sum() > 0


@EVERY
def test_random_weights_are_all_drawn_anew(tmp_path, family):
    tiny(family, tmp_path)
    net = load_hub(tmp_path)
    fresh = random_network(net, torch.randn(2, 3, 4, 32, 32))
    own = dict(net.named_parameters())
    kept = [
        k for k, p in fresh.named_parameters() if torch.equal(p, own[k]) and "predictor" not in k
    ]
    assert not kept


def dense(seen, k, steps):
    "The whole matrix of a module's attention, heads merged, put together place by place."
    a, (t, h, w) = steps[k].detach().mean(1), seen.grid
    if not seen.divided:
        return a[0]
    out, at = torch.zeros(1 + h * w * t, 1 + h * w * t), lambda p, f: 1 + p * t + f
    if k % 2 == 0:
        out[0, 0] = 1
        for p in range(h * w):
            out[1 + p * t : 1 + p * t + t, 1 + p * t : 1 + p * t + t] = a[p]
        return out
    for f in range(t):
        index = [0, *(at(p, f) for p in range(h * w))]
        for i, row in enumerate(index):
            for j, column in enumerate(index):
                out[row, column] += a[f, i, j] / (t if i == 0 else 1)
    return out


@EVERY
def test_rollout_is_the_product_of_whole_matrices(tmp_path, family):
    tiny(family, tmp_path)
    net, x = load_hub(tmp_path), torch.randn(1, 3, 4, 32, 32)
    seen = net.contract.attention
    _, steps = rollout._attention_of(net, x, seen)
    product = torch.eye(steps_of := seen.apart + 16 * seen.grid[0])
    for k in range(len(steps)):
        matrix = dense(seen, k, steps)
        torch.testing.assert_close(matrix.sum(1), torch.ones(steps_of))
        product = (matrix + torch.eye(steps_of)) / 2 @ product
    read = product[0, 1:] if seen.apart else product.mean(0)
    expected = read.unflatten(0, [dict(zip("thw", seen.grid))[k] for k in seen.order])
    expected = expected.permute(*(seen.order.index(k) for k in "thw"))
    before = net.net.config._attn_implementation
    maps, logits = rollout.rollouts(net, x)
    torch.testing.assert_close(maps["attention:rollout"][0], expected)
    assert net.net.config._attn_implementation == before and rollout.has_rollout(net)
    with torch.no_grad():
        torch.testing.assert_close(logits, net(x), rtol=0, atol=1e-5)


@EVERY
def test_gradient_weighted_rollout_knows_its_class(tmp_path, family):
    tiny(family, tmp_path)
    net, x = load_hub(tmp_path), torch.randn(2, 3, 4, 32, 32)
    sources = cam_sources(net)
    assert {*rollout.ROLLOUTS} < {*sources}
    maps, _ = make_maps(net, x, [0, 1], [*rollout.ROLLOUTS])
    other, _ = make_maps(net, x, [2, 1], [*rollout.ROLLOUTS])
    plain, own = (maps[name] for name in rollout.ROLLOUTS)
    assert (own >= 0).all() and own.sum() > 0
    torch.testing.assert_close(plain, other["attention:rollout"])
    assert not torch.allclose(own[0], other["attention:gradient rollout"][0], rtol=1e-2)
    torch.testing.assert_close(own[1], other["attention:gradient rollout"][1])
    minus, _ = make_maps(net, x, (torch.tensor([0, 1]), torch.tensor([2, 2])), [*rollout.ROLLOUTS])
    assert not torch.allclose(own, minus["attention:gradient rollout"], rtol=1e-2)


def test_quarters_of_the_depth():
    assert quarters(12, False) == dict(layer1=2, layer2=5, layer3=8, layer4=11)
    assert quarters(12, True)["layer4"] == 10
    assert quarters(24, False)["layer1"] == 5


@cache
def on_meta(name):
    with torch.device("meta"):
        return create_hub(name, 174)


@pytest.mark.parametrize("name", KNOWN)
def test_known_networks_are_priced_without_being_fetched(name):
    net = on_meta(name)
    frames, size = clip_of(name)
    millions = sum(p.numel() for p in net.parameters() if p.requires_grad) / 1e6
    assert net.contract.n_frames == frames and net.contract.size == size
    least = 20 if "small" in name else 86 if "base" in name or "hr" in name else 300
    assert least < millions < 20 * least


def test_a_study_says_frames_size_and_licence_by_itself_or_is_refused(tmp_path):
    def study(**exp):
        content = dict(title="t", data=dict(root="d"), experiments=dict(a=dict(title="a", **exp)))
        (tmp_path / "s.yaml").write_text(yaml.safe_dump(content))
        return load_study(str(tmp_path / "s.yaml")).experiments["a"]

    known = "hf:facebook/timesformer-base-finetuned-ssv2"
    exp = study(model=known)
    assert (exp.n_frames, exp.size) == (8, 224) and "not for commercial use" in exp.licence
    assert study(model=known + "@abc123").size == 224 and exp.stride is None
    giant = "hf:facebook/vjepa2-vitg-fpc64-384-ssv2"
    assert study(model=giant).stride == 2 and study(model=giant, stride=3).stride == 3
    with pytest.raises(ValueError, match="takes n_frames: 8"):
        study(model=known, n_frames=16)
    with pytest.raises(ValueError, match="say by n_frames and size"):
        study(model="hf:some/network")
    with pytest.raises(ValueError, match="neither a folder nor OWNER/NAME"):
        study(model="hf:nowhere")
    (tmp_path / "mine").mkdir()
    with pytest.raises(ValueError, match="holds no configuration"):
        study(model="hf:mine")
    tiny("vjepa2", tmp_path / "mine")
    exp = study(model="hf:mine")
    assert (exp.n_frames, exp.size, exp.model) == (4, 32, f"hf:{tmp_path / 'mine'}")


def test_a_published_networks_multiply_adds():
    "VideoMAE ViT-B at 16 x 224 x 224: its authors count 180 GFLOPs."
    net = on_meta("MCG-NJU/videomae-base-finetuned-ssv2")
    assert 170 < cost(net, (3, 16, 224, 224))["gflops"] < 190


def test_the_study_of_published_networks_costs_what_the_readme_says(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    cli.plan("ssv2-published")
    said = capsys.readouterr().out
    assert all(word in said for word in ("4,350 validation clips", "reliance", "hours a run"))
    hours = float(re.search(r"All 2 runs: ([\d.]+) hours", said)[1])
    readme = (project_root() / "README.md").read_text(encoding="utf-8")
    row = next(line for line in readme.splitlines() if "[ssv2-published]" in line)
    assert abs(hours - float(row.split("|")[-2])) < 0.5
