"""Plants single faults in the C++ of the kernels; the tests have to see each of them.

Run by ``.ci/kernels --faults``: ``python .ci/faults.py ROOM CASES [FIRST WORDS OF FAULTS...]``.

A fault is an edit whose text must occur exactly once in its file, so that a fault that no longer
fits the source fails instead of testing nothing. The kernels are built with it for plain C++ and
AVX2, then ``replay`` runs the cases of ``write_cases.py``, and where that sees nothing, pytest runs
``tests/kernels/test_native.py``. Faults in ``ort.cpp`` are for ``tests/runtime/test_operator.py``.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "binarize" / "kernels" / "csrc"
FLAGS = "-std=gnu++17 -O1 -fno-exceptions -fno-rtti -ffp-contract=off -Wno-psabi -fPIC".split()

# What goes wrong, the file, what stands there, and what is put in its place.
FAULTS = [
    (
        "zero padding counts as -1",
        "table.inc.hpp",
        "to[o] = total + all[o] - valid;",
        "to[o] = total;",
    ),
    (
        "a window beyond the border keeps one tap too many",
        "table.inc.hpp",
        "(m.in - 1 - start) / m.tap_step + 1);",
        "(m.in - start) / m.tap_step + 1);",
    ),
    (
        "reflection repeats the border",
        "bits.inc.hpp",
        "i = i < 0 ? -i : 2 * (size - 1) - i;",
        "i = i < 0 ? -i : 2 * size - 1 - i;",
    ),
    (
        "circular padding replicates",
        "bits.inc.hpp",
        "return ((i % size) + size) % size;",
        "return i < 0 ? 0 : size - 1;",
    ),
    (
        "sources are joined without what crosses a word",
        "bits.inc.hpp",
        "if (shift && (word >> (64 - shift))) to[1] |= word >> (64 - shift);",
        "",
    ),
    (
        "no margin for ties",
        "bits.inc.hpp",
        "level[k] = t - __builtin_fabsf(t) * kTieMargin;",
        "level[k] = t;",
    ),
    (
        "upsampled pixels count once in the deviation",
        "bits.inc.hpp",
        "if (kDeviation) deviation.add(full, (float)s.up);",
        "if (kDeviation) deviation.add(full, 1.0f);",
    ),
    (
        "flips of the second source are those of the first",
        "bits.inc.hpp",
        "    flip += channels;\n",
        "",
    ),
    (
        "long rows: means leave out their second part",
        "bits.inc.hpp",
        "              part * kSegment,\n",
        "              0,\n",
    ),
    (
        "a string that crosses a word loses its end",
        "bits.inc.hpp",
        "string[at + 1] |= bits >> 1 >> (63 - shift);",
        "",
    ),
    (
        "a row packed once loses its deviation",
        "bits.inc.hpp",
        "p.deviation[now] = p.deviation[packed];",
        "p.deviation[now] = 0;",
    ),
    (
        "every sample has the first one's alpha",
        "bits.inc.hpp",
        "const double* rows = p.deviation + n * p.deviation_rows;",
        "const double* rows = p.deviation;",
    ),
    (
        "plain C++: a value on its threshold is -1",
        "scalar.cpp",
        "less |= (uint64_t)(x[i] < t[i]) << i;",
        "less |= (uint64_t)(x[i] <= t[i]) << i;",
    ),
    (
        "AVX2: not a number is -1",
        "avx2.cpp",
        "_mm256_cmp_ps((__m256)x, (__m256)t, _CMP_NLT_UQ)",
        "_mm256_cmp_ps((__m256)x, (__m256)t, _CMP_GE_OQ)",
    ),
    (
        "AVX2: a byte counter overflows",
        "avx2.cpp",
        "  int left = 31;\n",
        "  int left = 33;\n",
    ),
    (
        "look-ups: a byte counter overflows",
        "lookup.inc.hpp",
        "held = kChunkSteps / looks_per_code(g, p.coded);",
        "held = 2 * kChunkSteps / looks_per_code(g, p.coded);",
    ),
    (
        "look-ups: a 16-bit counter overflows",
        "lookup.inc.hpp",
        "const int64_t most = kShortSteps / (p.coded / 4);",
        "const int64_t most = 16 * kShortSteps;",
    ),
    (
        "look-ups: lanes beyond the first register are in another order",
        "lookup.inc.hpp",
        "return lane % quarter * 4 + lane / quarter;",
        "return lane;",
    ),
    (
        "look-ups: odd codes are forgotten",
        "lookup.inc.hpp",
        "      if (k < count) {\n        step(k, 0, weight);",
        "      if (k < count) {",
    ),
    (
        "dense: the second word of a group is the first",
        "count.inc.hpp",
        "for (int64_t k = 0; k < words; ++k) *to++ = at + k;",
        "for (int64_t k = 0; k < words; ++k) *to++ = at;",
    ),
    (
        "depthwise: counts above 7 taps lose their carry",
        "count.inc.hpp",
        "const int top = planes > 3 ? planes : 3;",
        "const int top = 3;",
    ),
    (
        "depthwise: repeated weights do not begin again",
        "count.inc.hpp",
        "c.work->words[t * words + k % words];",
        "c.work->words[t * words + min(k, words - 1)];",
    ),
    (
        "transposed: dilated taps lie too far apart",
        "plan.inc.hpp",
        "r.tap_step = (last - before_last) * dil / s;",
        "r.tap_step = (last - before_last) * dil;",
    ),
    (
        "transposed: means of the last phase only",
        "convolve.inc.hpp",
        "const int64_t rows = c.work->sum_row + c.work->items;",
        "const int64_t rows = c.work->items;",
    ),
    (
        "transposed: several residuals are read as if without stride",
        "convolve.inc.hpp",
        "(at[2] + i * every) * s[3];",
        "(at[2] + i) * s[3];",
    ),
    (
        "the bypass stays behind at the border of a row",
        "convolve.inc.hpp",
        "run.bypass[s] += run.pixels * b.segment[s].step;",
        "run.bypass[s] += b.segment[s].step;",
    ),
    (
        "the epilogue's last channels take the bypass of the first",
        "finish.inc.hpp",
        "<float, int32_t, 1, kBypass, kResidual, kActivation>(b, segment, from + k, k);",
        "<float, int32_t, 1, kBypass, kResidual, kActivation>(b, segment, from + k, 0);",
    ),
    (
        "the activation's first shift is left out",
        "finish.inc.hpp",
        "          v += shift[w];\n",
        "",
    ),
    (
        "a mean over a window reads one column",
        "bypass.inc.hpp",
        "clamped(g, 2, from[2] + wx));",
        "clamped(g, 2, from[2]));",
    ),
    (
        "the last mean of channels leaves out the rest",
        "bypass.inc.hpp",
        "out[head] = mean_of(x + head * size, channels - head * size);",
        "out[head] = mean_of(x + head * size, size);",
    ),
    (
        "doubling: the bypass is shifted by one",
        "bypass.inc.hpp",
        "if (out == 2 * in) return o >> 1;",
        "if (out == 2 * in) return min(in - 1, (o + 1) >> 1);",
    ),
    (
        "upsampled sources: means are repeated once too often",
        "bypass.inc.hpp",
        "? (low + j + 1) * s.up - start : count;",
        "? (low + j + 1) * s.up - start + 1 : count;",
    ),
    (
        "threads that begin at either end do the same items",
        "parallel.inc.hpp",
        "return from_back ? stage.items - 1 - back : front;",
        "return from_back ? back : front;",
    ),
    (
        "operator: pads at the end do not count",
        "ort.cpp",
        "const int64_t pads = padding[2 * d] + padding[2 * d + 1];",
        "const int64_t pads = 2 * padding[2 * d];",
    ),
    (
        "operator: output padding is left out",
        "ort.cpp",
        "- pads + extent + u.output_padding[d]",
        "- pads + extent",
    ),
    (
        "operator: a pointwise layer with a stride is one row",
        "ort.cpp",
        "u.kernel[d] == 1 && u.stride[d] == 1 && !pads",
        "u.kernel[d] == 1 && !pads",
    ),
    (
        "a stream's changes count the other way",
        "stream.inc.hpp",
        "(single.row[pair / 16][w] - single.row[pair % 16][w])",
        "(single.row[pair % 16][w] - single.row[pair / 16][w])",
    ),
    (
        "a stream compares with its first frame only",
        "stream.inc.hpp",
        "__builtin_memcpy(held + at, now + at, (size_t)bytes);",
        "",
    ),
    (
        "a stream sees changes in the first line of windows only",
        "stream.inc.hpp",
        "s.index + (line + part->line) * (s.items + 1) + item",
        "s.index + line * (s.items + 1) + item",
    ),
    (
        "a stream's phases overwrite each other's sums",
        "convolve.inc.hpp",
        "c.stream->first_output += c.g->samples * w.phase.outputs;",
        "",
    ),
]

PLUGIN = """
import binarize.kernels

# Before anything looks for the library: the one with the fault.
binarize.kernels.__path__.insert(0, {room!r})
"""


def main(room: Path, cases: Path, *wanted: str) -> int:
    """Plant the faults one after another, and tell which test saw each."""
    compiler = os.environ.get("CXX", "g++")
    room.mkdir(parents=True, exist_ok=True)
    (room / "planted.py").write_text(PLUGIN.format(room=str(room)))
    sets = ["scalar", "avx2"] if platform.machine() == "x86_64" else ["scalar"]
    unseen = []
    nothing = ("nothing at all, which must pass", "scalar.cpp", "", "")
    for what, name, before, after in [nothing, *FAULTS]:
        if wanted and not what.startswith(wanted):
            continue
        if name == "avx2.cpp" and "avx2" not in sets:
            continue
        start = time.monotonic()
        source = room / "csrc"
        shutil.rmtree(source, ignore_errors=True)
        shutil.copytree(SOURCE, source)
        text = (source / name).read_text()
        if before and text.count(before) != 1:
            print(
                f"{name}: {before!r} is there {text.count(before)} times: mend the list of faults"
            )
            return 1
        (source / name).write_text(text.replace(before, after) if before else text)
        seen = build(compiler, room, source, sets) or check(room, cases, name)
        print(f"{seen or 'NOT SEEN':26} {what} ({time.monotonic() - start:.0f} s)", flush=True)
        if (seen is None) != (what == nothing[0]):
            unseen.append(what)
    for what in unseen:
        print(f"wrong: {what}")
    return 1 if unseen else 0


def build(compiler: str, room: Path, source: Path, sets: list[str]) -> str | None:
    """Build replay and both libraries; what the compiler sees is seen, too."""
    objects = [str(room / f"{name}.o") for name in sets]
    flags = [*FLAGS, f"-I{source}", *(f"-DBINARIZE_WITH_{name.upper()}" for name in sets[1:])]
    own = {"scalar": [], "avx2": ["-mavx2"]}
    jobs = {
        target: [*own[name], "-c", str(source / f"{name}.cpp")]
        for name, target in zip(sets, objects, strict=True)
    }
    api, ort = str(source / "api.cpp"), str(source / "ort.cpp")
    replay = str(ROOT / "tests" / "kernels" / "replay.cpp")
    jobs[str(room / "replay")] = [api, replay, *objects]
    jobs[str(room / "libbinarize_kernels.so")] = ["-shared", api, *objects]
    jobs[str(room / "libbinarize_ort.so")] = ["-shared", api, ort, *objects]
    for target, words in jobs.items():
        made = subprocess.run([compiler, *flags, *words, "-o", target], capture_output=True)
        if made.returncode:
            return "the compiler"
    return None


def check(room: Path, cases: Path, name: str) -> str | None:
    """The first test that sees the fault, or None."""
    tests = {"replay": [str(room / "replay"), str(cases)]}
    pytest = [sys.executable, "-m", "pytest", "-n0", "-x", "-q", "-p", "no:cacheprovider"]
    if name == "ort.cpp":
        tests = {"test_operator.py": [*pytest, "tests/runtime/test_operator.py"]}
    else:
        tests["test_native.py"] = [*pytest, "-p", "planted", "tests/kernels/test_native.py"]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(room), os.environ.get("PYTHONPATH")])),
        "BINARIZE_OPERATORS": str(room / "libbinarize_ort.so"),
    }
    for test, command in tests.items():
        try:
            done = subprocess.run(
                command, cwd=ROOT, env=environment, capture_output=True, timeout=300
            )
        except subprocess.TimeoutExpired:
            return f"{test}, by its time"
        if done.returncode:
            return test
    return None


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:]))
