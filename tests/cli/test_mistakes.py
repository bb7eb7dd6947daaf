"""Every mistake: exit code, one line on stderr, nothing on stdout, and what the line says."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

NET = "--model demo:UNet --model-arg widths=[8,16]"
DATA = "--data scenes --count 8 --size 32x24 --batch-size 4"
TRAIN = f"train {NET} {DATA} --output {{tmp}}/out --quiet"
PLAIN = TRAIN.replace("--model-arg widths=[8,16]", "")


@pytest.fixture
def tmp(tmp_path: Path) -> Path:
    """A folder with files that are wrong in many ways."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("not a folder")
    (tmp_path / "cut.safetensors").write_bytes(b"\x20\0\0\0\0\0\0\0{")
    (tmp_path / "cut.pt").write_bytes(b"PK\x03\x04nothing")
    save_file({"weight": torch.zeros(2)}, tmp_path / "foreign.safetensors")
    torch.save(torch.nn.Conv2d(1, 1, 1), tmp_path / "pickled.pt")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "foreign.pt")
    torch.save(3, tmp_path / "number.pt")
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "bad.toml").write_text('name = "x"\nbypas = 1\n')
    (tmp_path / "nets.py").write_text(
        "import torch\n"
        "def make(classes=2):\n    return torch.nn.Conv2d(3, classes, 1)\n"
        "def number():\n    return 3\n"
        "def broken():\n    raise RuntimeError('out of ideas')\n"
        "def flat():\n    return torch.nn.Linear(3, 3)\n"
    )
    (tmp_path / "syntax.py").write_text("def make(:\n")
    images, labels = (tmp_path / "pairs" / name for name in ("images", "masks"))
    for folder in (images, labels):
        folder.mkdir(parents=True)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(images / "a.png")
    Image.fromarray(np.full((8, 8), 9, np.uint8)).save(labels / "a.png")
    return tmp_path


MISTAKES = [
    # data
    (f"{TRAIN} --data camvd", "data='camvd': unknown data set; did you mean 'camvid'?"),
    (f"{TRAIN} --data camvid", "--root: 'camvid' is read from a folder; give its path"),
    (f"{TRAIN} --data camvid --root {{tmp}}/none", "root='.*none': no such folder"),
    (f"{TRAIN} --data camvid --root {{tmp}}/file", "root='.*file': is not a folder"),
    (f"{TRAIN} --data camvid --root {{tmp}}/empty", "no such folder"),
    (f"{TRAIN} --data nyuv2 --root {{tmp}}/empty", "no such folder"),
    (f"{TRAIN} --data folder --root {{tmp}}/pairs --classes 2", "label=9: .* outside 0..1"),
    (f"{TRAIN} --data folder --root {{tmp}}/pairs", "--classes: .*give the number of classes"),
    (f"{TRAIN} --augment bts --rotate 2", "augment='bts': is a whole .*; omit it, or --rotate"),
    (f"{TRAIN} --task segmentatoin", "did you mean 'segmentation'|use 'segmentation'"),
    (f"{TRAIN} --size 0x24", "size=.*: must be .*positive"),
    (f"{TRAIN} --normalize imagnet", "normalize='imagnet': unknown normalisation; use one of"),
    (f"{TRAIN} --count 0", "data set=0: has no samples"),
    (f"{TRAIN} --workers -1", "workers=-1: must not be negative"),
    (f"{TRAIN} --flip 2", "flip=2.0: must be from 0 to 1"),
    (f"{TRAIN} --jitter -1", "jitter=-1.0: must be from 0 to 1"),
    (f"{TRAIN} --zoom 0.5", "zoom=0.5: must be from 1 to 8"),
    # training
    (f"{TRAIN} --epochs 0", "epochs=0: must be positive"),
    (f"{TRAIN} --batch-size 0", "batch-size=0: must be positive"),
    (f"{TRAIN} --lr nan", "lr=nan: must be positive"),
    (f"{TRAIN} --clip 0", "clip=0.0: must be positive"),
    (f"{TRAIN} --weight-decay -1", "weight-decay=-1.0: must not be negative"),
    (f"{TRAIN} --warmup 2", "warmup=2.0: must be from 0 to 1"),
    (f"{TRAIN} --val-every 0", "val-every=0: must be positive"),
    (f"{TRAIN} --threads 0", "threads=0: must be positive"),
    (f"{TRAIN} --seed -1", "seed=-1: must not be negative"),
    (f"{TRAIN} --recalibrate -1", "recalibrate=-1: must not be negative"),
    (f"{TRAIN} --balance 3", "power=3.0: must be from 0 to 1"),
    (
        f"{TRAIN} --task depth --balance 0.5",
        "balance=0.5: needs classes; use it with",
    ),
    (f"{TRAIN} --resume {{tmp}}/none.pt", "resume='.*none.pt': no such file"),
    (f"{TRAIN} --resume {{tmp}}/foreign.pt", "is not a training state"),
    (f"{TRAIN} --output {{tmp}}/file/out", "output='.*': cannot be created"),
    # policy
    (f"{TRAIN} --policy bidens", "policy='bidens': no such policy; did you mean 'bidense'"),
    (f"{TRAIN} --policy {{tmp}}/none.toml", "no such rule file; check the path"),
    (f"{TRAIN} --policy {{tmp}}/bad.toml", "bypas: unknown key"),
    (
        f"{TRAIN} --policy none --keep-float 'down.*'",
        "policy='none': --keep-float, --int8 and --binarize need",
    ),
    (f"{TRAIN} --keep 'nothing.*'", "matched no layer"),
    (f"{TRAIN} --keep '*'", "nothing to binarize"),
    # start and teacher
    (f"{TRAIN} --distill weight=1", "needs a teacher; give --teacher FILE"),
    (f"{TRAIN} --teacher {{float}} --distill wait=1", "distill='wait': .*did you mean 'weight'"),
    (f"{TRAIN} --teacher {{float}} --distill trust=agre", "trust='agre': unknown name; use one"),
    (
        f"{TRAIN} --teacher {{float}} --distill weight=high",
        "a value has the wrong type",
    ),
    (f"{TRAIN} --teacher {{tmp}}/none.pt", "teacher='.*none.pt': no such file"),
    (f"{TRAIN} --teacher {{tmp}}/foreign.pt", "teacher='.*': no tensor fits"),
    (f"{TRAIN} --init {{tmp}}/none.safetensors", "init='.*': no such file; did you mean"),
    (f"{TRAIN} --init {{tmp}}/cut.safetensors", "init='.*': cannot be read"),
    (f"{TRAIN} --init {{tmp}}/cut.pt", "init='.*': cannot be read"),
    (f"{TRAIN} --init {{tmp}}/number.pt", "contains no named weights"),
    (f"{TRAIN} --init {{tmp}}/pickled.pt", "save network.state_dict"),
    (f"{TRAIN} --init {{tmp}}/foreign.safetensors", "no tensor fits: the file has weight"),
    (f"{TRAIN} --init {{binary}}", "belongs to a converted network"),
    (f"{TRAIN} --model-arg widths=[8,24] --init {{float}}", "does not fit: .*--partial"),
    (f"{TRAIN} --encoder-weights {{tmp}}/foreign.safetensors", "no tensor fits"),
    (f"{TRAIN} --encoder-weights {{tmp}}/empty", "is a folder"),
    (f"{TRAIN} --model {{float}} --init {{float}}", "cannot be combined with a file"),
    # networks
    (f"{TRAIN} --model smp:Unett:resnet18", "smp has no 'Unett'; did you mean 'Unet'"),
    (f"{TRAIN} --model smp:Unet:resnet19", "smp has no encoder 'resnet19'; did you mean"),
    (f"{TRAIN} --model smp:Unet:tu-resnet19", "timm has no 'resnet19'; did you mean"),
    (f"{TRAIN} --model timm:resnet19", "timm has no 'resnet19'; did you mean"),
    (f"{TRAIN} --model spm:Unet:resnet18", "did you mean smp:Unet:resnet18"),
    (f"{TRAIN} --model resnet18", "must be smp:.*; write timm:resnet18"),
    (f"{TRAIN} --model nets.py", "names no factory; write nets.py:FUNCTION_OR_CLASS"),
    (f"{TRAIN} --model {{tmp}}/none.py:make", "no such file"),
    (f"{PLAIN} --model {{tmp}}/nets.py:mak", "has no 'mak'; did you mean 'make'"),
    (f"{PLAIN} --model {{tmp}}/nets.py:number", "returned a int, not a torch.nn.Module"),
    (f"{PLAIN} --model {{tmp}}/nets.py:broken", "RuntimeError: out of ideas"),
    (f"{PLAIN} --model {{tmp}}/nets.py:flat", "size='32x24': the network does not accept it"),
    (f"{TRAIN} --model {{tmp}}/syntax.py:make", "importing syntax.py failed"),
    (f"{TRAIN} --model-arg width=3", "building it failed .*width"),
    (f"{TRAIN} --classes 0", "classes=0: must be at least 1"),
    (f"{TRAIN} --classes 3", "num_classes=6: the network returns 3 channels"),
    (f"{TRAIN} --in-channels 4", "size='32x24': the network does not accept it"),
    # eval, predict, report, convert
    (f"eval {{tmp}}/none.safetensors {DATA}", "no such file"),
    (f"eval nothing {DATA}", "is not a weight file"),
    (f"eval {{tmp}}/foreign.safetensors {DATA}", "does not name its network.*--model"),
    (f"eval {{float}} {DATA} --split tst", "split='tst': unknown split"),
    (f"eval {{float}} {DATA} --task depth", "depth needs one output channel"),
    (f"eval {{float}} {DATA} --batch-size 0", "batch-size=0: must be positive"),
    ("predict {float} {tmp}/none.jpg --output {tmp}/out", "no such file or folder"),
    ("predict {float} {tmp}/empty --output {tmp}/out", "the folder has no images"),
    ("predict {float} {tmp}/text.jpg --output {tmp}/out", "cannot be read as an image"),
    ("predict {float} {tmp}/bad.toml --output {tmp}/out", "is not an image"),
    ("predict {float} {tmp}/pairs/images --output {tmp}/file", "output='.*file'"),
    ("predict {tmp}/none.pt {tmp}/pairs/images --output {tmp}/out", "no such file"),
    ("predict {float} {tmp}/pairs/images {tmp}/pairs/masks --output {tmp}/o", "has the same name"),
    ("report {tmp}/cut.safetensors", "cannot be read"),
    ("report {float} --depth 0", "depth=0: must be at least 1"),
    ("report {float} --size 0x0", "size=.*: must be positive"),
    ("report smp:Unet:resnet18 --policy bidens", "no such policy"),
    ("report {binary} --policy bidense", "already has binary layers"),
    ("convert demo:UNet", "--output: is required; give -o FILE, or --dry-run"),
    ("convert demo:UNet -o {tmp}/none/x.safetensors", "its folder does not exist"),
    ("convert demo:UNet -o {tmp}/empty", "folder"),
    ("convert demo:UNet --plan-only --policy bidens", "did you mean 'bidense'"),
    ("convert demo:UNet --plan-only --keep nothing", "matched no layer"),
    ("convert {binary} --plan-only", "already has binary layers"),
    ("convert smp:Unet:resnet18 --size 7x0 --plan-only", "size='7x0': must be positive"),
    # rules, demo
    ("rules show bidens", "no such policy; did you mean 'bidense'"),
    ("rules show {tmp}/none.toml", "no such rule file"),
    ("rules cp bidense {tmp}/bad.toml", "already exists; use --force"),
    ("rules cp bidense {tmp}/mine", "a rule file ends in .toml"),
    ("rules cp bidense {tmp}/none/mine.toml", "cannot be written"),
    ("rules validate {tmp}/none.toml", "no such rule file"),
    ("demo --quick --seed -1", "seed=-1: must be at least 0"),
    ("demo --quick --threads 0", "threads=0: must be at least 1"),
    ("demo --quick --output {tmp}/file", "output='.*file': cannot be created"),
]


@pytest.mark.parametrize(("line", "says"), MISTAKES, ids=[line[:60] for line, _ in MISTAKES])
def test_a_mistake_is_one_line(
    line: str, says: str, run, tmp: Path, float_run: Path, binary_run: Path
) -> None:
    before = sorted(tmp.iterdir())
    words = line.format(
        tmp=tmp,
        float=float_run / "float.safetensors",
        binary=binary_run / "binary.safetensors",
    )
    answer = run(*shlex.split(words))
    assert answer.code == 1, answer.err
    assert answer.out == ""
    last = answer.err.splitlines()[-1]
    assert last.startswith("error: ")
    assert re.search(says, last), last
    assert "Traceback" not in answer.err
    assert "; " in last or "matched" in last  # what is wrong, and what to do about it
    left = [path for path in sorted(tmp.iterdir()) if path not in before]
    assert all(path.is_dir() and not list(path.iterdir()) for path in left), left


USAGE = [
    ("trian", "COMMAND: unknown 'trian'; did you mean 'train'"),
    ("train", "the following arguments are required: --model, --output"),
    (f"{TRAIN} --epoch 3", "unrecognized arguments: --epoch 3; did you mean --epochs"),
    (f"{TRAIN} --epochs three", "--epochs: invalid int value: 'three'"),
    (f"{TRAIN} --size 32", "'32' is not WIDTHxHEIGHT, such as 192x144"),
    (f"{TRAIN} --select bets", "unknown 'bets'; did you mean 'best'"),
    (f"{TRAIN} --distill trust", "'trust' is not KEY=VALUE"),
    ("rules shwo bidense", "unknown 'shwo'; did you mean 'show'"),
]


@pytest.mark.parametrize(("line", "says"), USAGE)
def test_a_usage_error_is_two_lines(line: str, says: str, run, tmp_path: Path) -> None:
    answer = run(*shlex.split(line.format(tmp=tmp_path)))
    assert answer.code == 2
    assert answer.out == ""
    message, hint = answer.err.splitlines()
    assert message.startswith("error: ")
    assert says in message
    assert re.fullmatch(r"try: binarize( [a-z]+)* --help", hint)


def test_debug_shows_the_traceback(run) -> None:
    answer = run("rules", "show", "bidens", "--debug")
    assert answer.code == 1
    assert "Traceback" in answer.err
    assert answer.err.splitlines()[-1].startswith("error: policy='bidens'")


def test_an_interruption_stays_one_when_cleaning_up_fails(
    run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        try:
            raise KeyboardInterrupt
        finally:
            raise RuntimeError("half closed")

    monkeypatch.setattr("binarize.policy.policy_files", interrupted)
    answer = run("rules", "ls")
    assert answer.code == 130
    assert answer.err.strip() == "interrupted"


def test_a_bug_says_so_and_how_to_see_more(run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr("binarize.policy.policy_files", broken)
    answer = run("rules", "ls")
    assert answer.code == 70
    assert answer.err.startswith("error: ZeroDivisionError: oh (a bug in binarize")
    assert "Traceback" not in answer.err
    monkeypatch.setenv("BINARIZE_DEBUG", "1")
    assert "Traceback" in run("rules", "ls").err
