"""Measuring: what is counted, in which order, and what a failure leaves."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from torch import nn

import binarize
from binarize.bench import (
    VERSIONS,
    Measured,
    Subject,
    peak_of_this_process,
    relative_speed,
    time_interleaved,
)


def test_calls_take_turns_in_a_rotating_order() -> None:
    seen: list[str] = []
    told: list[tuple[int, int]] = []
    calls = {name: lambda name=name: seen.append(name) for name in "abc"}
    seconds = time_interleaved(
        calls, rounds=4, least=0, tell=lambda done, total: told.append((done, total))
    )
    assert "".join(seen) == "aabbcc" + "abc" + "bca" + "cab" + "abc"
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert {name: len(values) for name, values in seconds.items()} == dict.fromkeys("abc", 4)
    assert all(value >= 0 for values in seconds.values() for value in values)


def test_short_calls_are_repeated_and_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("binarize.bench.timing.time.perf_counter", lambda: now[0])

    def call(cost: float):
        def advance() -> None:
            now[0] += cost

        return advance

    seconds = time_interleaved({"short": call(0.001), "long": call(0.5)}, rounds=2, least=0.02)
    assert seconds["short"] == pytest.approx([0.001, 0.001])
    assert seconds["long"] == pytest.approx([0.5, 0.5])
    assert now[0] == pytest.approx(2 * 0.501 + 2 * (0.02 + 0.5), abs=0.003)


def test_nothing_to_time() -> None:
    assert time_interleaved({}, rounds=3) == {}


def test_numbers_of_a_version() -> None:
    row = Measured("a", "", 4, (0.1, 0.4, 0.2, 0.3, 9.0))
    assert row.latency == 0.3
    assert row.quartiles == (0.2, 0.4)
    assert row.throughput == pytest.approx(4 / 0.3)
    told = json.loads(json.dumps(row.to_dict(Measured("b", "", 4, (0.2, 0.8, 0.4, 0.6, 18.0)))))
    assert told["speedup"] == pytest.approx(2)
    assert told["failure"] is None
    assert Measured("a", "", 1, (0.5,)).quartiles == (0.5, 0.5)


def test_numbers_of_a_version_that_does_not_run() -> None:
    row = Measured("a", "", 1, failure="no compiler")
    assert row.latency is row.quartiles is row.throughput is None
    assert row.to_dict(row)["speedup"] is None
    assert row.to_dict()["failure"] == "no compiler"


def test_speed_is_compared_round_by_round() -> None:
    # The machine is three times slower in the second half of the rounds.
    base, other = (1.0, 1.0, 3.0, 3.0), (0.5, 0.5, 1.5, 1.5)
    assert relative_speed(base, other) == 2
    assert relative_speed((), other) is None


def test_the_peak_is_that_of_the_process_alone() -> None:
    big = torch.ones(64, 1 << 20)  # 256 MB, which a child must not inherit
    mine = peak_of_this_process()
    if mine is None:
        pytest.skip("the peak is not known on this platform")
    assert mine > big.numel() * big.element_size()
    code = "from binarize.bench.memory import peak_of_this_process as p; import torch; print(p())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert 0 < int(done.stdout) < mine - big.numel() * big.element_size() // 2


@pytest.fixture(scope="module")
def subject() -> Subject:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 2, 1),
    )  # fmt: skip
    student = binarize.convert(network, example_inputs=torch.zeros(1, 3, 8, 8)).eval()
    return Subject(lambda: network, lambda: student, lambda: binarize.pack(student))


@pytest.mark.filterwarnings("ignore")  # the exporter's
@pytest.mark.parametrize("name", [name for name in VERSIONS if name != "compiled"])
def test_versions_compute_their_network(name: str, subject: Subject) -> None:
    image = torch.randn(2, 3, 8, 8)
    twin = subject.student if "packed" in name else subject.network
    tolerance = 0.05 if name == "bf16" else 1e-4
    with torch.inference_mode():
        made = VERSIONS[name].make(subject)(image)
        torch.testing.assert_close(made.float(), twin(image), atol=tolerance, rtol=tolerance)
    assert subject.network.training is False
    assert next(subject.network.parameters()).dtype == torch.float32


def test_file_sizes(subject: Subject) -> None:
    sizes = {name: version.file_bytes(subject) for name, version in VERSIONS.items()}
    assert sizes["float"] == sizes["compiled"] > sizes["bf16"] > 0
    assert VERSIONS["ort-packed"].asked
    assert sizes["packed"] == binarize.report(subject.student).file_bytes
