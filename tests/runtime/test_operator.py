"""The operator gives what the kernels give, for every geometry and instruction set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from binarize.kernels import native, reference
from binarize.kernels.layout import VERSION, pack_weight
from binarize.runtime import library

SETS = [name for name in native.status().usable if name != "reference"]

# channels in and out, kernel, and what else is not the default
CASES: dict[str, dict[str, Any]] = {
    "dense": {"channels": (64, 32), "kernel": (3, 3)},
    "odd channels": {"channels": (65, 97), "kernel": (3, 3)},
    "one channel": {"channels": (1, 1), "kernel": (1, 1), "padding": (0, 0, 0, 0)},
    "few channels, folded": {"channels": (5, 16), "kernel": (3, 3)},
    "pointwise": {"channels": (96, 24), "kernel": (1, 1), "padding": (0, 0, 0, 0)},
    "pointwise and strided": {
        "channels": (32, 24),
        "kernel": (1, 1),
        "stride": (2, 2),
        "padding": (0, 0, 0, 0),
    },
    "strided": {"channels": (16, 48), "kernel": (3, 3), "stride": (2, 2)},
    "strided unevenly": {"channels": (16, 8), "kernel": (5, 3), "stride": (3, 1)},
    "dilated": {
        "channels": (32, 32),
        "kernel": (3, 3),
        "dilation": (2, 3),
        "padding": (2, 2, 3, 3),
    },
    "grouped": {"channels": (24, 36), "kernel": (3, 3), "groups": 4},
    "depthwise": {"channels": (40, 40), "kernel": (3, 3), "groups": 40},
    "even kernel": {"channels": (12, 20), "kernel": (2, 4), "padding": (1, 0, 2, 1)},
    "reflected": {"channels": (16, 16), "kernel": (3, 3), "padding_mode": "reflect"},
    "replicated": {"channels": (16, 16), "kernel": (3, 3), "padding_mode": "replicate"},
    "circular": {"channels": (16, 16), "kernel": (3, 3), "padding_mode": "circular"},
    "interleaved bypass": {"channels": (24, 10), "kernel": (3, 3), "bypass": "interleaved"},
    "no bypass": {"channels": (16, 8), "kernel": (3, 3), "bypass": "none"},
    "one dimension": {"channels": (20, 12), "kernel": (3,), "padding": (1, 1), "size": (17,)},
    "three dimensions": {
        "channels": (8, 12),
        "kernel": (3, 3, 3),
        "padding": (1,) * 6,
        "size": (5, 6, 7),
    },
    "transposed": {
        "channels": (32, 16),
        "kernel": (3, 3),
        "stride": (2, 2),
        "transposed": True,
        "output_padding": (1, 1),
    },
    "transposed without overlap": {
        "channels": (16, 24),
        "kernel": (2, 2),
        "stride": (2, 2),
        "padding": (0, 0, 0, 0),
        "transposed": True,
    },
    "two sources, one upsampled": {"channels": (40, 16), "kernel": (3, 3), "sources": (24, 16)},
    "empty batch": {"channels": (16, 8), "kernel": (3, 3), "samples": 0},
    "large": {"channels": (64, 64), "kernel": (3, 3), "size": (48, 40)},
}


def arguments(case: dict[str, Any], rich: bool) -> dict[str, Any]:
    """Arguments of ``binarize::unit``; ``rich`` gives everything that may be left out."""
    inner, outer = case["channels"]
    kernel = case["kernel"]
    dims = len(kernel)
    stride = case.get("stride", (1,) * dims)
    dilation = case.get("dilation", (1,) * dims)
    groups, transposed = case.get("groups", 1), case.get("transposed", False)
    size, samples = case.get("size", (12, 14)[:dims]), case.get("samples", 2)
    parts = case.get("sources", (inner,))
    upsample = [2 if i == 0 and len(parts) > 1 else 1 for i in range(len(parts))]
    sources = [
        torch.randn(samples, c, *(s // u for s in size))
        for c, u in zip(parts, upsample, strict=True)
    ]
    shape = (inner, outer // groups) if transposed else (outer, inner // groups)
    weight = pack_weight(
        torch.randn(*shape, *kernel),
        stride=stride,
        dilation=dilation,
        groups=groups,
        transposed=transposed,
    )
    optional: dict[str, Any] = {
        "mean_gain": torch.rand(inner) + 0.5,
        "flip": torch.rand(inner) < 0.3,
        "exponent": torch.rand(1),
        "act_shift": torch.randn(outer),
        "act_slope": torch.rand(outer),
        "act_out_shift": torch.randn(outer),
    }
    given: dict[str, Any] = {
        "sources": sources,
        "upsample": upsample,
        "means": [],
        "weight": weight,
        "gain": torch.rand(outer) + 0.1,
        "offset": torch.randn(outer),
        "mean_gain": None,
        "threshold": torch.randn(inner) / 10,
        "flip": None,
        "exponent": None,
        "kernel": kernel,
        "stride": stride,
        "padding": case.get("padding", tuple(k // 2 for k in kernel for _ in range(2))),
        "dilation": dilation,
        "groups": groups,
        "padding_mode": case.get("padding_mode", "zeros"),
        "transposed": transposed,
        "output_padding": case.get("output_padding", (0,) * dims),
        "bypass": case.get("bypass", "contiguous"),
        "bypass_offset": (0,) * dims,
        "residuals": [],
        "act_shift": None,
        "act_slope": None,
        "act_out_shift": None,
        "want_means": False,
    }
    if rich:
        given |= optional
        plain = reference.unit(**given)[0]
        given["residuals"] = [torch.randn(plain.shape)]
        given["want_means"] = True
        # The kernel takes those means itself that are not given.
        given["means"] = [
            x.flatten(2).mean(2, dtype=torch.float64).float() if i % 2 else torch.empty(0)
            for i, x in enumerate(sources)
        ]
    return given


TENSORS = ("weight", "gain", "offset", "threshold", "mean_gain", "flip", "exponent")
TENSORS += ("act_shift", "act_slope", "act_out_shift")


def session(given: dict[str, Any], path: Path, **changed: Any) -> Any:
    """A graph of one operator, loaded."""
    types = {torch.uint8: TensorProto.UINT8, torch.bool: TensorProto.BOOL}
    fixed = {name: given[name] for name in TENSORS if given[name] is not None}
    maps = {f"source{i}": x for i, x in enumerate(given["sources"])}
    maps |= {f"means{i}": x for i, x in enumerate(given["means"])}
    maps |= {f"residual{i}": x for i, x in enumerate(given["residuals"])}
    outputs = ["y", "y_means"][: 1 + given["want_means"]]
    attributes = {
        "layout": VERSION,
        "dims": len(given["kernel"]),
        "upsample": list(given["upsample"]),
        "sources": len(given["sources"]),
        "has_means": int(len(given["means"]) > 0),
        **{
            name: list(given[name])
            for name in "kernel stride padding dilation output_padding bypass_offset".split()
        },
        **{name: given[name] for name in ("groups", "padding_mode", "bypass")},
        "transposed": int(given["transposed"]),
    } | changed
    node = helper.make_node(
        "BinaryConv",
        [name if name in fixed else "" for name in TENSORS] + [""] + list(maps),
        outputs,
        domain="binarize",
        **attributes,
    )
    graph = helper.make_graph(
        [node],
        "one",
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * value.dim())
            for name, value in maps.items()
        ],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [
            helper.make_tensor(
                name,
                types.get(x.dtype, TensorProto.FLOAT),
                list(x.shape),
                x.numpy().tobytes(),
                True,
            )
            for name, x in fixed.items()
        ],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("binarize", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.register_custom_ops_library(str(library()))
    return onnxruntime.InferenceSession(path, options)


def last(x: torch.Tensor) -> np.ndarray:
    """Channels last, where it is a feature map."""
    return (x.movedim(1, -1) if x.dim() > 2 else x).contiguous().numpy()


def run(session: Any, given: dict[str, Any]) -> list[torch.Tensor]:
    tensors = [*given["sources"], *given["means"], *given["residuals"]]
    names = [each.name for each in session.get_inputs()]
    results = session.run(None, dict(zip(names, map(last, tensors), strict=True)))
    return [
        torch.from_numpy(r).movedim(-1, 1) if r.ndim > 2 else torch.from_numpy(r) for r in results
    ]


@pytest.mark.parametrize("chosen", SETS)
@pytest.mark.parametrize("name", CASES)
def test_operator_equals_the_kernel(
    name: str, chosen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BINARIZE_KERNELS", chosen)
    for rich in (False, True):
        given = arguments(CASES[name], rich)
        wanted, means = native.select(chosen)(**given)
        found = run(session(given, tmp_path / "one.onnx"), given)
        assert found[0].shape == wanted.shape
        # The very same code on the very same numbers.
        assert torch.equal(found[0], wanted)
        if rich:
            torch.testing.assert_close(found[1], means, rtol=1e-6, atol=1e-6)
        plain = reference.unit(**given)[0]
        torch.testing.assert_close(found[0], plain, rtol=1e-4, atol=1e-4)


def test_padding_may_be_an_input(tmp_path: Path) -> None:
    given = arguments(CASES["dense"], False)
    path = tmp_path / "one.onnx"
    session(given, path, padding=[0, 0, 0, 0])
    model = onnx.load(path)
    model.graph.node[0].input[10] = "pads"
    model.graph.initializer.append(helper.make_tensor("pads", TensorProto.INT64, [4], [1, 2, 0, 3]))
    onnx.save(model, path)
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(str(library()))
    (found,) = run(onnxruntime.InferenceSession(path, options), given)
    wanted = reference.unit(**given | {"padding": (1, 2, 0, 3)})[0]
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


REFUSED = {
    "attribute layout=2: this operator library reads weights of layout 1; use a newer": {
        "layout": VERSION + 1
    },
    "attribute kernel: holds 1 numbers, must hold 2; export the network again": {"kernel": [3]},
    "attribute stride: 0 is not allowed; export the network again": {"stride": [0, 1]},
    "attribute padding_mode='mirror': is unknown; use a newer operator library": {
        "padding_mode": "mirror"
    },
    "attribute groups=0: must be 1 to 2147483647; export the network again": {"groups": 0},
    "attribute dims=4: must be 1 to 3; export the network again": {"dims": 4},
    "attribute sources=0: must be 1 to 64; export the network again": {"sources": 0},
}


@pytest.mark.parametrize("message", REFUSED)
def test_wrong_attributes_are_refused(message: str, tmp_path: Path) -> None:
    with pytest.raises(Exception) as caught:
        session(arguments(CASES["dense"], False), tmp_path / "one.onnx", **REFUSED[message])
    assert message in str(caught.value)


def test_wrong_tensors_are_refused(tmp_path: Path) -> None:
    def told(changes: dict[str, Any], given: Any = None, **attributes: Any) -> str:
        graph = arguments(CASES["dense"], False) | changes
        loaded = session(graph, tmp_path / "one.onnx", **attributes)
        with pytest.raises(Exception) as caught:
            run(loaded, given or graph)
        return str(caught.value)

    whole = arguments(CASES["dense"], False)
    assert "input weight: holds 8 values, must hold" in told({"weight": whole["weight"][:8]})
    assert "input offset: holds 31 values, must hold 32" in told({"offset": torch.zeros(31)})
    assert "input threshold: holds 3 values, must hold 64" in told({"threshold": torch.zeros(3)})
    assert "must divide 64 and 32 channels" in told({}, groups=5)
    assert "gives no output; give a larger image" in told(
        {"sources": [torch.zeros(1, 64, 2, 2)], "padding": (0, 0, 0, 0)}
    )
    assert "residual 0: does not have the size of the result" in told(
        {"residuals": [torch.zeros(2, 32, 5, 5)]}
    )
    reflected = {"padding_mode": "reflect", "sources": [torch.zeros(1, 64, 1, 8)]}
    assert "is too small for a padding of 1 by its own values" in told(reflected)
    assert "source 0 of 3 dimensions: must be (N, *spatial, C) of 4" in told(
        {"sources": [torch.zeros(1, 64, 4)]}
    )
