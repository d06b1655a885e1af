"""Grad-CAM on R3D-18: ours against pytorch-grad-cam, torch-cam and captum, same model, layer, batch and process. Prints one JSON line.

Every contestant takes its turn in every round; the figure is its best round, in wall and in processor seconds (the latter is fair on a busy machine).
The peers need the development extras: pip install -e .[dev]
"""

import argparse
import json
import platform
import time
import warnings

import torch
import torchvision

from ssv2_report.gradcam.maps import CAM_METHODS, gradcam, resize_maps

LAYERS = ["layer2", "layer3", "layer4"]


def contestants(model, clip, targets):
    "Name -> function without arguments."
    from captum.attr import LayerGradCam
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    from torchcam.methods import GradCAM as TorchCAM

    def plain():
        with torch.no_grad():
            return model(clip)

    def grad_cam():
        with GradCAM(model, [model.layer4]) as cam:
            return cam(clip, [ClassifierOutputTarget(t) for t in targets])

    def torch_cam():
        with TorchCAM(model, "layer4") as cam:
            return cam(targets, model(clip), normalized=False)

    return {
        "forward": plain,
        "ours_native": lambda: gradcam(model, clip, targets, "layer4")[0],
        "ours_input_size": lambda: resize_maps(
            gradcam(model, clip, targets, "layer4")[0], clip.shape[2:]
        ),
        "ours_five_methods_three_layers": lambda: gradcam(
            model, clip, targets, LAYERS, list(CAM_METHODS)
        )[0],
        "torch_cam_native": torch_cam,
        "captum_native": lambda: LayerGradCam(model, model.layer4).attribute(
            clip, target=torch.tensor(targets), relu_attributions=True
        ),
        "pytorch_grad_cam_input_size": grad_cam,
    }


def main():
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--batch", type=int, default=8)
    p.add_argument("--frames", type=int, default=16)
    p.add_argument("--size", type=int, default=112)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--threads", type=int, default=torch.get_num_threads())
    a = p.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(a.threads)
    torch.manual_seed(0)
    model = torchvision.models.video.r3d_18(num_classes=174).eval()
    clip, targets = (
        torch.randn(a.batch, 3, a.frames, a.size, a.size),
        [i % 174 for i in range(a.batch)],
    )
    runs = contestants(model, clip, targets)
    runs["forward"]()
    wall, cpu = ({k: [] for k in runs} for _ in range(2))
    for _ in range(a.rounds):
        for name, run in runs.items():
            t, c = time.perf_counter(), time.process_time()
            run()
            wall[name].append(time.perf_counter() - t), cpu[name].append(time.process_time() - c)
    wall, cpu = ({k: min(v) for k, v in x.items()} for x in (wall, cpu))
    over = lambda x, a, b: round(x[a] / x[b], 3)
    ratios = lambda x: dict(
        ours_over_forward=over(x, "ours_native", "forward"),
        all_over_one=over(x, "ours_five_methods_three_layers", "ours_native"),
        pytorch_grad_cam_over_ours=over(x, "pytorch_grad_cam_input_size", "ours_input_size"),
        torch_cam_over_ours=over(x, "torch_cam_native", "ours_native"),
        captum_over_ours=over(x, "captum_native", "ours_native"),
    )
    per_clip = lambda x: {k: round(1000 * v / a.batch, 1) for k, v in x.items()}
    print(
        json.dumps(
            dict(
                benchmark="gradcam",
                model="r3d_18",
                clip=[a.batch, 3, a.frames, a.size, a.size],
                layer="layer4",
                threads=a.threads,
                rounds=a.rounds,
                torch=torch.__version__,
                machine=platform.machine(),
                ms_per_clip=per_clip(wall),
                cpu_ms_per_clip=per_clip(cpu),
                ratios=ratios(wall),
                cpu_ratios=ratios(cpu),
            )
        )
    )


if __name__ == "__main__":
    main()
