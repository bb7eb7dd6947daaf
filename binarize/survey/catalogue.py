"""The networks of the survey, and how to build each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from binarize.errors import ModelError

__all__ = ["LIBRARIES", "WILD", "Case", "build", "catalogue", "select", "spread"]

LIBRARIES = ("timm", "segmentation_models_pytorch", "torchvision")
# Networks from user files.
WILD = "wild"

_CLASSES = 10
# One encoder of each of these timm families is combined with every decoder through smp's wrapper.
_UNIVERSAL = ("resnetv2", "convnext", "mobilenetv3", "regnet", "efficientnet", "vision_transformer")


@dataclass(frozen=True)
class Case:
    """One network.

    Attributes:
        library: One of ``LIBRARIES``, or ``WILD``.
        family: Its group: timm's module, smp's decoder, torchvision's task.
        name: The network's name; ``Decoder/encoder`` for smp.
        variant: ``"features"`` (timm's ``features_only=True``), ``"aux"`` (smp's classification
            head) or empty.
        sample: Whether it is also run with real weights.
    """

    library: str
    family: str
    name: str
    variant: str = ""
    sample: bool = False

    @property
    def key(self) -> str:
        """Its name in the survey, which patterns match."""
        short = {"segmentation_models_pytorch": "smp"}.get(self.library, self.library)
        return f"{short}:{self.name}" + (f"+{self.variant}" if self.variant else "")


def catalogue() -> list[Case]:
    """Return every network of the three libraries, in a fixed order."""
    return [*_timm(), *_smp(), *_torchvision()]


def select(cases: Sequence[Case], patterns: Sequence[str]) -> list[Case]:
    """Keep the cases that one of the patterns matches.

    Args:
        cases: The cases.
        patterns: As in ``fnmatch``, against the key (``timm:resnet50``, ``smp:Unet/resnet18``) or
            the family; all cases if there is none.

    Raises:
        ModelError: A pattern matches nothing.
    """
    if not patterns:
        return list(cases)
    for pattern in patterns:
        if not any(_matches(case, pattern) for case in cases):
            raise ModelError(
                "pattern",
                pattern,
                f"none of the {len(cases)} networks matches it",
                "give for example 'timm:resnet*', 'smp:Unet/*' or the family 'convnext'",
            )
    return [case for case in cases if any(_matches(case, pattern) for pattern in patterns)]


def spread(cases: Sequence[Case]) -> list[Case]:
    """Order cases so that an interrupted survey covers every family.

    Args:
        cases: The cases.

    Returns:
        The samples, then the first of each family, the second, ...
    """
    counts: dict[tuple[str, str], int] = defaultdict(int)
    ranks = []
    for case in cases:
        counts[case.library, case.family] += 1
        ranks.append((not case.sample, counts[case.library, case.family]))
    order = sorted(range(len(cases)), key=lambda i: ranks[i])
    return [cases[i] for i in order]


def _matches(case: Case, pattern: str) -> bool:
    return fnmatchcase(case.key, pattern) or fnmatchcase(case.family, pattern)


def build(case: Case) -> nn.Module:
    """Build the float network with random weights, on torch's current default device."""
    if case.library == WILD:
        from binarize.survey.wild import build_wild

        return build_wild(case)
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
                cases.append(Case("torchvision", task, name, sample=name in _SAMPLES))
    return cases


_SAMPLES = frozenset(
    "lraspp_mobilenet_v3_large deeplabv3_mobilenet_v3_large ssdlite320_mobilenet_v3_large r3d_18 "
    "alexnet googlenet inception_v3 mnasnet0_5 mobilenet_v2 shufflenet_v2_x0_5 squeezenet1_1 "
    "densenet121 regnet_x_400mf resnet18 efficientnet_b0 swin_t convnext_tiny maxvit_t".split()
)
