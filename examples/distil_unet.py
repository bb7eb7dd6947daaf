"""Train a float U-Net, binarize it, distil it from the float one, save it and load it again.

The scenes are generated from a seed, so nothing is downloaded. The defaults run in seconds; for a
usable network, take your own data, more epochs and larger images.

    python examples/distil_unet.py
    python examples/distil_unet.py --epochs 20 --scenes 512 --size 96 128
"""

from __future__ import annotations

import argparse
from pathlib import Path

import segmentation_models_pytorch as smp
import torch
from torch.utils.data import DataLoader

import binarize
from binarize.data import Scenes


def main() -> None:
    """Train, convert, distil, save, load."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--scenes", type=int, default=16)
    parser.add_argument("--size", type=int, nargs=2, default=(64, 64), metavar=("H", "W"))
    parser.add_argument("--output", type=Path, default=Path("unet.safetensors"))
    args = parser.parse_args()
    size = (args.size[0], args.size[1])

    torch.manual_seed(0)
    train = DataLoader(Scenes(args.scenes, size, seed=0, augment=True), batch_size=8, shuffle=True)
    val = DataLoader(Scenes(args.scenes // 2, size, seed=1), batch_size=8)

    teacher = smp.Unet("resnet18", encoder_weights=None, classes=Scenes.num_classes)
    binarize.Trainer(teacher, task="segmentation", epochs=args.epochs).fit(train, val)

    # Starts from the teacher's weights and re-estimates norm statistics; the teacher is unchanged.
    student = binarize.prepare_student(teacher, batches=train)
    trainer = binarize.Trainer(student, teacher=teacher, task="segmentation", epochs=args.epochs)
    trainer.fit(train, val)
    print({name: trainer.evaluate(val)[name] for name in ("mIoU", "pixAcc")})

    binarize.save(student, args.output)
    again = binarize.load(args.output)  # smp and timm networks rebuild themselves
    image = torch.zeros(1, 3, *size)
    with torch.no_grad():
        assert torch.equal(again(image), student.eval()(image))
    made = binarize.report(again, image)
    print(f"{made.file_bytes:,} bytes, {made.reference_bytes / made.file_bytes:.1f} times smaller")


if __name__ == "__main__":
    main()
