"""What a user can do wrong with files: one line each, nothing changed, nothing half written."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import binarize
from binarize.errors import FileError, ModelError

Make = Callable[[str], tuple[nn.Module, Tensor]]


@pytest.fixture
def network(make: Make) -> nn.Module:
    return make("encoder-decoder")[0]


@pytest.fixture
def student(network: nn.Module) -> nn.Module:
    return binarize.convert(network, example_inputs=torch.zeros(1, 3, 16, 16))


@pytest.fixture
def file(student: nn.Module, tmp_path: Path) -> Path:
    binarize.save(student, tmp_path / "good.safetensors")
    return tmp_path / "good.safetensors"


def edit(path: Path, **changes: str | None) -> Path:
    """Write the same tensors under another header."""
    with safe_open(path, framework="pt") as handle:
        tensors = {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118
        metadata = {**handle.metadata(), **changes}
    edited = path.with_name("edited.safetensors")
    metadata.pop("checksum", None)  # what is tested is what comes after it
    save_file(tensors, edited, {k: v for k, v in metadata.items() if v is not None})
    return edited


def message(error: pytest.ExceptionInfo[Any]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


# Loading: the file


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileError) as error:
        binarize.load(tmp_path / "no.safetensors")

    path = str(tmp_path / "no.safetensors")
    assert message(error) == f"path={path!r}: there is no such file; check the path"


def test_folder(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="this is a folder; give the file itself"):
        binarize.load(tmp_path)


@pytest.mark.parametrize("path", [None, 3])
def test_not_a_path(path: Any) -> None:
    with pytest.raises(FileError, match=r"path=\S+: not a path; give a file name such as"):
        binarize.load(path)


@pytest.mark.parametrize("kept", [0, 4, 100, -1, -10_000])
def test_truncated_file(file: Path, network: nn.Module, kept: int) -> None:
    file.write_bytes(file.read_bytes()[:kept])

    with pytest.raises(FileError, match="not a safetensors file, or an incomplete one") as error:
        binarize.load(file, network)

    assert message(error).endswith("; get the file again from its source")


def test_file_with_a_tail(file: Path, network: nn.Module) -> None:
    file.write_bytes(file.read_bytes() + b"tail")

    with pytest.raises(FileError, match="not a safetensors file, or an incomplete one"):
        binarize.load(file, network)


def test_pickled_file_is_not_unpickled(tmp_path: Path, network: nn.Module) -> None:
    torch.save(network, tmp_path / "model.pt")

    with pytest.raises(FileError, match="not a safetensors file"):
        binarize.load(tmp_path / "model.pt", network)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_foreign_file(tmp_path: Path, network: nn.Module, metadata: dict[str, str] | None) -> None:
    path = tmp_path / "foreign.safetensors"
    save_file(network.state_dict(), path, metadata)

    with pytest.raises(FileError) as error:
        binarize.load(path, network)

    assert message(error) == (
        f"path={str(path)!r}: binarize.save did not write this file; give a file that it wrote"
    )


def test_newer_format(file: Path, network: nn.Module) -> None:
    # A newer format may have another plan: the version is looked at before anything else.
    edited = edit(file, format_version="3", plan="from the future")

    with pytest.raises(FileError) as error:
        binarize.load(edited, network)

    assert message(error) == (
        f"path={str(edited)!r}: its format version 3 is newer than 2, which this release reads; "
        "update: pip install -U binarize-torch"
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"format_version": None},
        {"format_version": "one"},
        {"padding_value": "1"},
        {"plan": None},
        {"plan": "#"},
        {"plan": "AAAA"},
        {"layout": "eNqrrgUAAXUA+Q=="},
        {"origin": "{"},
    ],
    ids=lambda changes: "-".join(map(str, *changes.items())),
)
def test_damaged_header(file: Path, network: nn.Module, changes: dict[str, str | None]) -> None:
    with pytest.raises(FileError, match="its header is damaged") as error:
        binarize.load(edit(file, **changes), network)

    assert message(error).endswith("; get the file again from its source")


def test_file_that_cannot_build_its_network(file: Path) -> None:
    with pytest.raises(FileError) as error:
        binarize.load(file)

    assert message(error) == (
        f"path={str(file)!r}: the file does not say how to build its network; "
        "give the float network: load(path, model=...)"
    )


@pytest.mark.parametrize(
    ("origin", "words"),
    [
        ('{"library": "keras", "name": "a", "arguments": {}}', "comes from an unknown library"),
        ('{"library": "timm", "name": "resnet19", "arguments": {}}', "cannot be built here"),
        (
            '{"library": "timm", "name": "test_resnet", "arguments": {}}',
            "built by its name differs",
        ),
        ('{"library": "timm", "name": "resnet18", "arguments": {}}', "built by its name differs"),
    ],
)
def test_library_that_builds_something_else(tmp_path: Path, origin: str, words: str) -> None:
    student = binarize.convert(timm.create_model("test_resnet", num_classes=3))
    binarize.save(student, tmp_path / "a.safetensors")

    with pytest.raises(FileError, match=words) as error:
        binarize.load(edit(tmp_path / "a.safetensors", origin=origin))

    assert "model=..." in message(error)


# Loading: the network


def test_other_classes(file: Path, make: Make, network: nn.Module) -> None:
    other = type(network)(classes=4)  # type: ignore[call-arg]

    with pytest.raises(ModelError) as error:
        binarize.load(file, other)

    assert message(error) == (
        "model='EncoderDecoder': it is not the network that was saved; differs: "
        "head.weight (3, 7, 1, 1) in the file, (4, 7, 1, 1) in the network, "
        "head.bias (3,) in the file, (4,) in the network; give the float network that was converted"
    )


def test_other_weights_of_a_binary_layer(file: Path, network: nn.Module) -> None:
    network.grouped = nn.Conv2d(18, 18, 1)

    with pytest.raises(ModelError, match=r"grouped.weight of shape \(18, 18, 1, 1\)"):
        binarize.load(file, network)


def test_layer_that_is_missing(file: Path, network: nn.Module) -> None:
    network.grouped = nn.Identity()

    with pytest.raises(ModelError) as error:
        binarize.load(file, network)

    assert "'EncoderDecoder': the file's plan does not fit it (AttributeError" in message(error)


def test_more_and_less_in_the_network(file: Path, network: nn.Module) -> None:
    network.extra = nn.Conv2d(3, 3, 1)
    network.head = nn.Conv2d(7, 3, 1, bias=False)

    with pytest.raises(ModelError) as error:
        binarize.load(file, network)

    assert "the file lacks extra.weight, extra.bias; the network lacks head.bias" in message(error)


def test_many_differences_are_told_short(file: Path, network: nn.Module) -> None:
    network.extra = nn.Sequential(*(nn.Conv2d(3, 3, 1) for _ in range(20)))

    with pytest.raises(ModelError, match=r"the file lacks extra.0.weight, .* and 37 more"):
        binarize.load(file, network)


def test_bits_that_do_not_fit(file: Path, network: nn.Module) -> None:
    with safe_open(file, framework="pt") as handle:
        tensors = {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118
        metadata = handle.metadata()
    tensors["down.weight.bits"] = tensors["down.weight.bits"][:-1]
    metadata.pop("checksum", None)
    save_file(tensors, file, metadata)

    with pytest.raises(ModelError, match=r"down.weight.bits \(242,\) of uint8 in the file"):
        binarize.load(file, network)


def test_network_that_is_converted_already(file: Path, student: nn.Module) -> None:
    with pytest.raises(ModelError) as error:
        binarize.load(file, student)

    assert message(error).endswith(
        ": it already has binary layers; give the float network that was converted"
    )


def test_not_a_network(file: Path) -> None:
    with pytest.raises(ModelError, match="model='dict': not a torch.nn.Module"):
        binarize.load(file, model={})  # type: ignore[arg-type]


def test_network_on_the_meta_device(file: Path, network: nn.Module) -> None:
    with pytest.raises(ModelError, match="it is on the meta device; build the network on a real"):
        binarize.load(file, network.to("meta"))


def test_network_that_cannot_be_copied(file: Path, network: nn.Module) -> None:
    network.lock = open(os.devnull)  # noqa: SIM115
    try:
        with pytest.raises(ModelError, match="it cannot be deep-copied") as error:
            binarize.load(file, network)
    finally:
        network.lock.close()

    message(error)


def test_nothing_is_half_loaded(file: Path, network: nn.Module) -> None:
    network.head = nn.Conv2d(7, 4, 1)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    modules = [(name, type(module)) for name, module in network.named_modules()]

    with pytest.raises(ModelError):
        binarize.load(file, network)

    assert [(name, type(module)) for name, module in network.named_modules()] == modules
    after = network.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], value) for key, value in before.items())


# Saving


@pytest.mark.parametrize("wrap", [lambda m: m, nn.DataParallel], ids=["float", "wrapper"])
def test_network_that_is_not_converted(
    network: nn.Module, tmp_path: Path, wrap: Callable[[nn.Module], nn.Module]
) -> None:
    network = wrap(network)

    with pytest.raises(ModelError) as error:
        binarize.save(network, tmp_path / "a.safetensors")

    assert message(error) == (
        f"model={type(network).__name__!r}: binarize.convert did not make it; "
        "convert it first; if it is a wrapper (such as DataParallel), give the network inside"
    )
    assert not list(tmp_path.iterdir())


def test_saving_no_network(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="model='OrderedDict': not a torch.nn.Module"):
        binarize.save(nn.Linear(1, 1).state_dict(), tmp_path / "a")  # type: ignore[arg-type]


def test_missing_folder(student: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(FileError) as error:
        binarize.save(student, tmp_path / "no" / "a.safetensors")

    folder = os.path.realpath(tmp_path / "no")
    assert message(error).endswith(f"there is no folder {folder!r}; create the folder first")


def test_saving_over_a_folder(student: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(FileError, match="this is a folder; give the name of a file in it"):
        binarize.save(student, tmp_path)


def test_saving_to_no_path(student: nn.Module) -> None:
    with pytest.raises(FileError, match="path=7: not a path"):
        binarize.save(student, 7)  # type: ignore[arg-type]


def test_full_disk_leaves_the_old_file(
    student: nn.Module, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = file.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FileError) as error:
        binarize.save(student, file)

    assert message(error) == (
        f"path={str(file)!r}: it cannot be written (No space left on device); "
        "check permissions and free disk space"
    )
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_interrupted_saving_leaves_nothing(
    student: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        binarize.save(student, tmp_path / "a.safetensors")

    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() == 0, reason="root may write anywhere")
def test_folder_without_rights(student: nn.Module, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(FileError, match=r"it cannot be written \(Permission denied\)"):
        binarize.save(student, tmp_path / "a.safetensors")


def test_name_that_is_too_long(student: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(FileError, match="it cannot be written"):
        binarize.save(student, tmp_path / ("a" * 300))


def test_saving_replaces_what_a_link_points_to(student: nn.Module, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real" / "a.safetensors")

    binarize.save(student, tmp_path / "link")

    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "a.safetensors").stat().st_size > 0


def test_new_file_has_the_usual_rights(file: Path) -> None:
    usual = file.with_name("usual")
    usual.touch()

    assert file.stat().st_mode == usual.stat().st_mode


def test_saving_a_network_without_values(student: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="a tensor on the meta device has no values"):
        binarize.save(student.to("meta"), tmp_path / "a.safetensors")


def test_saving_state_that_is_no_tensor(student: nn.Module, tmp_path: Path) -> None:
    class Counting(nn.Identity):
        def get_extra_state(self) -> dict[str, int]:
            return {"steps": 3}

    student.counting = Counting()

    with pytest.raises(ModelError, match="counting._extra_state': this entry .* is neither a para"):
        binarize.save(student, tmp_path / "a.safetensors")


def test_saving_tensors_no_file_can_hold(student: nn.Module, tmp_path: Path) -> None:
    student.register_buffer("phase", torch.zeros(2, dtype=torch.complex64))

    with pytest.raises(ModelError, match="phase of torch.complex64.*cannot hold tensors of this"):
        binarize.save(student, tmp_path / "a.safetensors")

    assert not list(tmp_path.iterdir())
