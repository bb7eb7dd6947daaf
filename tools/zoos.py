"""Every network of timm, segmentation-models-pytorch and torchvision, and how to build each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from shapes import prefer_native_shapes
from torch import nn

from binarize.survey import Case

__all__ = ["build", "build_quickly", "catalogue"]

_CLASSES = 10
# One encoder of each of these timm families is combined with every decoder through smp's wrapper.
_UNIVERSAL = ("resnetv2", "convnext", "mobilenetv3", "regnet", "efficientnet", "vision_transformer")


def catalogue() -> list[Case]:
    """Return every network of the three libraries, in a fixed order."""
    return [*_timm(), *_smp(), *_torchvision()]


def build(case: Case) -> nn.Module:
    """Build the float network with random weights, on torch's current default device."""
    if case.library == "timm":
        import timm

        if case.variant == "features":
            return timm.create_model(case.name, features_only=True)
        return timm.create_model(case.name)
    if case.library == "segmentation_models_pytorch":
        import segmentation_models_pytorch as smp

        decoder, _, encoder = case.name.partition("/")
        options: dict[str, Any] = {}
        if case.variant == "aux":
            options["aux_params"] = {"classes": 4, "pooling": "avg", "dropout": 0.2}
        return getattr(smp, decoder)(encoder, encoder_weights=None, classes=_CLASSES, **options)
    import torchvision

    options = {"weights": None}
    if case.family == "detection":
        model = torchvision.models.get_model(case.name, weights_backbone=None, **options)
        return model.backbone
    if case.family == "segmentation":
        options |= {"weights_backbone": None, "num_classes": _CLASSES}
    if case.name in ("googlenet", "inception_v3"):
        options["init_weights"] = False
    return torchvision.models.get_model(case.name, **options)


def build_quickly(case: Case) -> nn.Module:
    """Build a network in a process of the survey, where all meta tensors get fast shapes."""
    prefer_native_shapes()
    return build(case)


# timm


def _timm_families() -> dict[str, list[str]]:
    import timm

    families = {name: timm.list_models(module=name) for name in timm.list_modules()}
    return {name: sorted(models) for name, models in sorted(families.items()) if models}


def _smallest(names: Sequence[str]) -> str:
    """Return a small network of a family, judging by names."""
    big = (
        "large huge giant xlarge xxlarge gigantic base flexi so400m h14 g14 7b 384 448 512".split()
    )
    small = "nano pico femto atto zepto tiny small 050 b0 s0 _t_ _xs xxs".split()

    def rank(name: str) -> tuple[int, int, int, str]:
        return (
            name.startswith("test_"),
            sum(word in name for word in big) - any(word in name for word in small),
            len(name),
            name,
        )

    return min(names, key=rank)


def _timm() -> list[Case]:
    cases = []
    for family, names in _timm_families().items():
        sample = _smallest(names)
        stems = {name.split("_")[0].rstrip("0123456789"): name for name in reversed(names)}
        for name in names:
            cases.append(Case("timm", family, name, sample=name == sample))
            if name in stems.values():
                cases.append(Case("timm", family, name, "features"))
    return cases


# segmentation-models-pytorch


def _encoder_families() -> dict[str, list[str]]:
    """Return smp's own encoders, by class and kind."""
    from segmentation_models_pytorch.encoders import encoders

    families: dict[str, list[str]] = defaultdict(list)
    for name, entry in encoders.items():
        stem = name.split("-")[0] if not name.startswith("timm-") else name[5:].split("-")[0]
        kind = "".join(c for c in stem.split("_")[0] if not c.isdigit())
        families[f"{entry['encoder'].__name__}/{kind}"].append(name)
    return dict(families)


def _smp() -> list[Case]:
    from segmentation_models_pytorch import MODEL_ARCHITECTURES_MAPPING as architectures

    decoders = sorted(cls.__name__ for cls in architectures.values())
    timm_families = _timm_families()
    own = _encoder_families()
    one_each = [min(names, key=len) for names in own.values()]
    one_each += [f"tu-{_smallest(timm_families[family])}" for family in _UNIVERSAL]
    encoders = {decoder: list(one_each) for decoder in decoders}
    encoders["Unet"] += [name for names in own.values() for name in names]
    encoders["Unet"] += [f"tu-{_smallest(names)}" for names in timm_families.values()]
    # The one decoder for transformer tokens.
    encoders["DPT"] += [
        f"tu-{_smallest(timm_families[family])}" for family in ("beit", "deit", "eva", "hiera")
    ]
    library = "segmentation_models_pytorch"
    cases: list[Case] = []
    for decoder in decoders:
        first = len(cases)
        for encoder in dict.fromkeys(encoders[decoder]):
            sample = encoder == ("resnet18" if decoder != "DPT" else one_each[-1])
            cases.append(Case(library, decoder, f"{decoder}/{encoder}", sample=sample))
        encoder = "resnet18" if decoder != "DPT" else one_each[-1]
        cases.insert(first, Case(library, decoder, f"{decoder}/{encoder}", "aux"))
    return cases


# torchvision

_TASKS = ("segmentation", "detection", "video", "classification")


def _torchvision() -> list[Case]:
    import torchvision

    seen: set[str] = set()
    cases = []
    for task in _TASKS:
        module = torchvision.models if task == "classification" else None
        for name in torchvision.models.list_models(
            module=module or getattr(torchvision.models, task)
        ):
            if name not in seen:
                seen.add(name)
                shape = None
                if task == "video":
                    side = 224 if name in _LARGE_VIDEOS else 112
                    shape = (1, 3, 16, side, side)
                sample = name in _SAMPLES
                cases.append(Case("torchvision", task, name, sample=sample, shape=shape))
    return cases


# torchvision's other video networks take 112.
_LARGE_VIDEOS = ("mvit_v1_b", "mvit_v2_s", "s3d", "swin3d_t", "swin3d_s", "swin3d_b")


_SAMPLES = frozenset(
    "lraspp_mobilenet_v3_large deeplabv3_mobilenet_v3_large ssdlite320_mobilenet_v3_large r3d_18 "
    "alexnet googlenet inception_v3 mnasnet0_5 mobilenet_v2 shufflenet_v2_x0_5 squeezenet1_1 "
    "densenet121 regnet_x_400mf resnet18 efficientnet_b0 swin_t convnext_tiny maxvit_t".split()
)
