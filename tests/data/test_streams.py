"""Streams of samples: any iterable of dicts, in an order that a resumed run repeats."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader

from binarize.data import IGNORE, Augment, ImageMaskFolder, StreamDataset
from binarize.errors import DataError
from binarize.train import Trainer

ROWS, COLUMNS = 8, 12


def pixels(index: int) -> np.ndarray:
    return np.full((ROWS, COLUMNS, 3), index, np.uint8)


def labels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 3, (ROWS, COLUMNS), dtype=np.uint8)


def png(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG")
    return file.getvalue()


def records(count: int = 10) -> list[dict[str, Any]]:
    return [{"image": pixels(index), "mask": labels()} for index in range(count)]


def order(data: Any) -> list[int]:
    """The images that a stream or a loader yields, by their colour."""
    return [
        int(v) for item in data for v in item["image"].reshape(-1, 3, ROWS, COLUMNS)[:, 0, 0, 0]
    ]


def stream(source: Any = None, count: int | None = 10, **options: Any) -> StreamDataset:
    options = {"classes": 3, "normalize": ((0.0,) * 3, (1 / 255,) * 3), **options}
    return StreamDataset(records() if source is None else source, count, **options)


def test_all_forms_of_values_are_the_same() -> None:
    image, mask = pixels(7), labels()
    palette = Image.fromarray(mask, "P")
    palette.putpalette([0] * 768)
    forms: list[dict[str, Any]] = [
        {"image": image, "mask": mask},
        {"image": Image.fromarray(image), "mask": palette},
        {"image": {"bytes": png(image), "path": None}, "mask": png(mask)},
        {"image": torch.from_numpy(image).permute(2, 0, 1), "mask": torch.from_numpy(mask).long()},
        {"image": image[..., 0], "mask": mask[..., None]},
    ]
    first, *others = list(stream(forms, None))
    assert torch.equal(first["mask"], torch.from_numpy(mask).long())
    assert (first["image"] == 7).all()
    for other in others:
        assert all(torch.equal(first[key], other[key]) for key in first)


def test_samples_are_prepared_as_those_of_files(tmp_path: Any) -> None:
    image = np.random.default_rng(1).integers(0, 256, (ROWS, COLUMNS, 3), dtype=np.uint8)
    for name, values in (("images", image), ("masks", labels())):
        (tmp_path / name).mkdir()
        Image.fromarray(values).save(tmp_path / name / "a.png")
    for options in ({"size": (5, 7)}, {"size": (5, 5), "fit": "crop"}, {"size": None}):
        files = ImageMaskFolder(tmp_path / "images", tmp_path / "masks", classes=3, **options)
        source = [{"jpg": image, "seg.png": labels()}]
        names = {"image": "jpg", "mask": "seg.png"}
        (sample,) = StreamDataset(source, names=names, classes=3, **options)
        assert all(torch.equal(sample[key], files[0][key]) for key in sample)


def test_depth_in_its_unit() -> None:
    depth = np.full((ROWS, COLUMNS), 40_000, np.uint16)
    depth[0] = 0
    source = [{"image": pixels(0), "depth": png(depth)}, {"image": pixels(0), "depth": depth}]
    data = StreamDataset(source, task="depth", depth_scale=0.0001)
    for sample in data:
        assert sample["depth"].shape == (1, ROWS, COLUMNS)
        assert sample["depth"].unique().tolist() == pytest.approx([0, 4])
    assert data.max_depth == 10


def test_the_order_depends_on_seed_and_epoch_only() -> None:
    data = stream(shuffle=4)
    first = order(data)
    assert sorted(first) == list(range(10))
    assert first != list(range(10))
    data.set_epoch(1)
    second = order(data)
    assert second != first
    again = stream(shuffle=4)
    again.set_epoch(1)
    assert order(again) == second
    assert order(stream(shuffle=4, seed=1)) != first
    assert order(stream()) == list(range(10))
    assert order(stream(lambda epoch: records(2 + epoch), None)) == [0, 1]
    assert order(stream(count=3)) == [0, 1, 2]


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_share_the_stream(workers: int) -> None:
    data = stream(shuffle=4, augment=Augment(flip=0.5))
    loader = DataLoader(data, 1, num_workers=workers, persistent_workers=True)
    assert sorted(order(loader)) == list(range(10))
    before = {order([item])[0]: item["mask"] for item in data}
    for item in loader:  # the augmentation is the same in every worker
        assert torch.equal(item["mask"][0], before[order([item])[0]])
    data.set_epoch(1)  # also seen by workers that live on
    assert order(DataLoader(data, 1)) == order(data)
    if workers == 1:
        assert order(loader) == order(data)


def test_a_source_that_divides_itself() -> None:
    class Shards:
        num_shards = 2

        def __iter__(self) -> Iterator[dict[str, Any]]:
            worker = torch.utils.data.get_worker_info()
            yield from records()[worker.id :: 2] if worker else records()

    assert sorted(order(DataLoader(stream(Shards()), 1, num_workers=2))) == list(range(10))


def test_a_run_that_stops_goes_on_with_the_same_samples(tmp_path: Any) -> None:
    def network() -> nn.Module:
        torch.manual_seed(0)
        return nn.Conv2d(3, 3, 1)

    def run(**options: Any) -> Any:
        data = stream(shuffle=5, augment=Augment(flip=0.5))
        made = Trainer(network(), epochs=2, progress=False, **options)
        made.fit(DataLoader(data, 2))
        return made

    class Stop(Exception):
        pass

    def stop(*_: Any, **__: Any) -> None:
        raise Stop

    whole = run()
    assert len(whole.history) == 2
    epochs: list[int] = []
    source = stream(lambda epoch: [epochs.append(epoch), *records()][1:])
    Trainer(network(), epochs=2, progress=False).fit(DataLoader(source, 2))
    assert len(set(epochs)) == 2
    with pytest.raises(Stop):
        run(output_dir=tmp_path, callbacks=[stop])
    resumed = run(output_dir=tmp_path, resume="auto")
    for name, value in whole.student.state_dict().items():
        assert torch.equal(value, resumed.student.state_dict()[name]), name


@pytest.mark.parametrize(
    ("sample", "says"),
    [
        ({"image": pixels(0)}, "source='sample 0': has no 'mask', but image; name it: names="),
        (
            {"image": pixels(0), "mask": labels() + 7},
            "label=9: sample 0 has a label outside 0..2 and 255",
        ),
        (
            {"image": pixels(0), "mask": labels()[1:]},
            "masks='sample 0': its size (7, 12) is not the image's (8, 12)",
        ),
        ({"image": b"no image", "mask": labels()}, "file='sample 0': cannot be read as an image"),
        (
            {"image": pixels(0) / 255, "mask": labels()},
            "image='torch.float64 (3, 8, 12)': of sample 0 is not an RGB image; give a PIL image",
        ),
        (
            {"image": pixels(0), "mask": pixels(0)},
            "mask=(8, 12, 3): of sample 0 is not one number per pixel; give (H, W), an image of "
            "one channel, or the file's bytes undecoded",
        ),
        (
            {"image": pixels(0), "mask": labels() / 2},
            "mask='torch.float64': of sample 0 is not of integers; give class indices",
        ),
    ],
)
def test_what_is_wrong_with_a_sample(sample: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError) as caught:
        list(stream([sample]))
    assert says in str(caught.value)


def test_arguments() -> None:
    assert stream([{"image": pixels(0), "mask": labels() + 0}], void=[2]).num_classes == 3
    for options, says in (
        ({"count": 0}, "count=0: is too small; give a larger number"),
        ({"task": "multilabel"}, "task='multilabel': unknown task"),
        ({"classes": ()}, "classes=None: are needed for the masks; give their number"),
    ):
        with pytest.raises(DataError, match=says):
            StreamDataset([], **{"classes": 2, **options})
    with pytest.raises(TypeError, match="count is unknown"):
        len(stream(count=None))
    void = [sample["mask"] for sample in stream([{"image": pixels(0), "mask": labels()}], void=[9])]
    assert IGNORE not in void[0].unique()


def test_a_divided_part_that_is_too_small_starts_over() -> None:
    class Shards:
        num_shards = 2

        def __iter__(self) -> Iterator[dict[str, Any]]:
            yield from records(3)

    assert order(stream(Shards(), 5)) == [0, 1, 2, 0, 1]
    assert order(stream(Shards(), None)) == [0, 1, 2]
    assert order(stream(lambda epoch: Shards(), 4)) == [0, 1, 2, 0]
    assert order(stream([], 4, divided=True)) == []
    assert order(stream(records(3), 5)) == [0, 1, 2]


def test_workers_that_end_with_a_partial_batch_each() -> None:
    """5 + 5 samples are 6 batches of at most 2, where the schedule has 5."""
    losses = []
    for workers in (0, 2):
        torch.manual_seed(0)
        source = [{"image": pixels(0), "mask": labels()}] * 10
        loader = DataLoader(stream(source), 2, num_workers=workers)
        trainer = Trainer(nn.Conv2d(3, 3, 1), epochs=1, lr=1e-9, progress=False)
        (record,) = trainer.fit(loader)
        losses.append(record["loss"])
        assert record["images"] == (9 if workers else 10)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)  # a mean over as many batches


@pytest.fixture
def shards(tmp_path: Any) -> list[str]:
    """Shards of 6, 4 and 3 samples."""
    webdataset = pytest.importorskip("webdataset", reason="webdataset is not installed")
    files, number = [], 0
    for count in (6, 4, 3):
        files.append(str(tmp_path / f"{count}.tar"))
        with webdataset.TarWriter(files[-1]) as writer:
            for _ in range(count):
                image, mask = png(pixels(number)), png(labels())
                writer.write({"__key__": f"{number:02d}", "png": image, "seg.png": mask})
                number += 1
    return files


def web(shards: list[str], count: int | None = 13, **options: Any) -> StreamDataset:
    import webdataset

    def opened(epoch: int) -> Any:
        order = np.random.default_rng(epoch).permutation(len(shards))
        kept = {"shardshuffle": False, **options}
        return webdataset.WebDataset([shards[i] for i in order], **kept)

    return stream(opened, count, names={"image": "png", "mask": "seg.png"}, shuffle=4)


# WebDataset leaves closing its files to the garbage collector.
UNCLOSED = pytest.mark.filterwarnings("ignore:.*unclosed file:ResourceWarning", "ignore:.*_io.Buff")


@UNCLOSED
def test_webdataset_shards(shards: list[str]) -> None:
    import webdataset

    data = web(shards)
    first = order(data)
    assert sorted(first) == list(range(13))
    data.set_epoch(1)
    assert order(data) != first
    assert sorted(order(web(shards, None))) == list(range(13))
    # Mapped pipelines are the same samples; decoded ones have masks of three channels.
    plain = webdataset.WebDataset(shards, shardshuffle=False)
    renamed = list(stream(plain.rename(image="png", mask="seg.png"), 13))
    for one, other in zip(renamed, stream(plain, 13, names=NAMES), strict=True):
        assert all(torch.equal(one[key], other[key]) for key in one)
    with pytest.raises(DataError, match=r"not one number per pixel; give .*bytes undecoded$"):
        list(stream(plain.decode("pil"), 13, names=NAMES))
    with pytest.raises(DataError, match=r"has no 'mask', but .*png.*, seg\.png; name it: names="):
        list(stream(plain, 13, names={"image": "png"}))
    assert plain.pipeline[2].__name__ == "split_by_worker"  # what tells that workers divide it


NAMES = {"image": "png", "mask": "seg.png"}


@UNCLOSED
@pytest.mark.parametrize("workers", [1, 2])
def test_webdataset_in_workers(shards: list[str], workers: int) -> None:
    def loaded(**options: Any) -> list[int]:
        return order(DataLoader(web(shards, **options), 2, num_workers=workers))

    # Each reads its own shards, of 9 and 4, or 7 and 6, or 10 and 3 samples, and 13 in all.
    found = loaded()
    assert len(found) == 13
    assert set(found) <= set(range(13))
    assert len(set(found)) >= 10 if workers > 1 else len(set(found)) == 13
    # All read every shard: each sample once.
    assert sorted(loaded(workersplitter=None)) == list(range(13))


@UNCLOSED
def test_webdataset_split_by_process(shards: list[str]) -> None:
    import webdataset

    # Alone, or where nothing deals out samples, a process may read its own part.
    assert sorted(order(web(shards, nodesplitter=webdataset.split_by_node))) == list(range(13))
    dealt = web(shards, nodesplitter=None).dealt()
    assert sorted(order(dealt)) == list(range(13))
    rule = "splits the source by process, and so does the trainer; open it with nodesplitter=None"
    for name, options in (
        ("single_node_only", {}),  # WebDataset's default
        ("split_by_node", {"nodesplitter": webdataset.split_by_node}),
    ):
        data = web(shards, **options)
        with pytest.raises(DataError) as caught:
            list(data.dealt())
        assert str(caught.value) == f"source={name!r}: {rule}"
        assert sorted(order(data)) == list(range(13))


@UNCLOSED
@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_on_webdataset_resumes(shards: list[str], workers: int, tmp_path: Any) -> None:
    def run(stop: int | None = None, **options: Any) -> tuple[Any, list[float]]:
        torch.manual_seed(0)
        network = nn.Conv2d(3, 3, 1)
        made = Trainer(
            network,
            epochs=3,
            progress=False,
            callbacks=[lambda _, record: record["epoch"] == stop],
            **options,
        )
        history = made.fit(DataLoader(web(shards), 4, num_workers=workers))
        return network.state_dict(), [record["loss"] for record in history]

    whole = run()
    assert whole[1][-1] < whole[1][0]
    run(stop=1, output_dir=tmp_path)
    again = run(output_dir=tmp_path, resume="auto")
    torch.testing.assert_close(again, whole, rtol=0, atol=0)


def test_hugging_face_streams() -> None:
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")

    def generate() -> Iterator[dict[str, Any]]:
        for index in range(6):
            yield {"image": Image.fromarray(pixels(index)), "mask": Image.fromarray(labels())}

    features = datasets.Features({"image": datasets.Image(), "mask": datasets.Image()})
    source = datasets.IterableDataset.from_generator(generate, features=features)
    data = stream(source.shuffle(seed=1, buffer_size=3), 6)
    first = order(data)
    assert sorted(first) == list(range(6))
    data.set_epoch(3)
    assert order(data) != first


def test_hugging_face_split_by_process() -> None:
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    from datasets.distributed import split_dataset_by_node

    whole = datasets.Dataset.from_dict({"x": [0, 1]}).to_iterable_dataset(num_shards=2)
    part = split_dataset_by_node(whole, rank=0, world_size=2)
    with pytest.raises(DataError) as caught:
        next(iter(stream(part).dealt()))
    assert str(caught.value) == (
        "source='split_dataset_by_node': splits the source by process, and so does the trainer; "
        "give the whole data set"
    )
    with pytest.raises(DataError, match="has no 'image'"):  # nothing else is wrong with it
        next(iter(stream(whole).dealt()))
