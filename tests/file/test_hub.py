"""Networks in folders and on the Hugging Face Hub; a fake stands in for it, nothing is fetched."""

from __future__ import annotations

import builtins
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import timm
import torch
from huggingface_hub import errors
from safetensors.torch import save_file
from torch import Tensor, nn

import binarize
from binarize.data.dense import normalisation
from binarize.errors import FileError, ModelError
from binarize.file import card

Make = Callable[[str], tuple[nn.Module, Tensor]]
SETTINGS = {
    "task": "segmentation",
    "size": [48, 64],
    "normalize": "imagenet",
    "classes": ["road", "sky | cloud"],
    "palette": [[0, 0, 255], [128, 64, 0]],
}


class Hub:
    """Repositories in folders: ``<root>/<user>/<name>/<revision>``."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def folder(self, repo_id: str, revision: str | None) -> Path:
        return self.root / repo_id / (revision or "main")

    def create_repo(self, repo_id: str, **options: Any) -> None:
        self.calls.append(("create_repo", options))
        self.folder(repo_id, None).mkdir(parents=True, exist_ok=True)

    def create_branch(self, repo_id: str, *, branch: str, exist_ok: bool) -> None:
        self.folder(repo_id, branch).mkdir(exist_ok=exist_ok)

    def file_exists(self, repo_id: str, filename: str, *, revision: str | None) -> bool:
        return (self.folder(repo_id, revision) / filename).exists()

    def upload_folder(
        self, *, repo_id: str, folder_path: str, revision: str | None, commit_message: str
    ) -> SimpleNamespace:
        self.calls.append(("upload_folder", {"commit_message": commit_message}))
        for file in Path(folder_path).iterdir():
            (self.folder(repo_id, revision) / file.name).write_bytes(file.read_bytes())
        return SimpleNamespace(commit_url=f"https://hub/{repo_id}/commit/1")

    def hf_hub_download(
        self, repo_id: str, filename: str, *, revision: str | None = None, **options: Any
    ) -> str:
        self.calls.append(("hf_hub_download", options))
        if not (self.root / repo_id).is_dir():
            raise _error(errors.RepositoryNotFoundError)
        if not self.folder(repo_id, revision).is_dir():
            raise _error(errors.RevisionNotFoundError)
        if not (self.folder(repo_id, revision) / filename).is_file():
            raise _error(errors.RemoteEntryNotFoundError)
        return str(self.folder(repo_id, revision) / filename)


def _error(kind: type[Exception]) -> Exception:
    """Make an error of the library without the response that its constructor may want."""
    error = kind.__new__(kind)
    error.args = ("several\nlines",)
    return error


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    fake = Hub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda **options: fake)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fake.hf_hub_download)
    return fake


@pytest.fixture
def network(make: Make) -> nn.Module:
    return make("encoder-decoder")[0]


@pytest.fixture
def student(network: nn.Module) -> nn.Module:
    return binarize.convert(network, example_inputs=torch.zeros(1, 3, 16, 16)).eval()


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


# Folders


def test_folder_gives_the_network_back(
    made: tuple[nn.Module, Tensor], trained: Callable[[nn.Module], nn.Module], tmp_path: Path
) -> None:
    network, x = made
    student = trained(binarize.convert(network, example_inputs=x))
    binarize.save_pretrained(student, tmp_path / "new" / "net")

    assert names(tmp_path / "new" / "net") == ["README.md", "model.safetensors"]
    again = binarize.from_pretrained(tmp_path / "new" / "net", network)
    assert torch.equal(again(x), student(x))
    packed = binarize.from_pretrained(str(tmp_path / "new" / "net"), network, packed=True)
    assert torch.equal(packed(x), binarize.pack(student)(x))


def test_a_task_of_a_folder(student: nn.Module, network: nn.Module, tmp_path: Path) -> None:
    binarize.save_pretrained(student, tmp_path / "net")
    task = binarize.add_task(student, flips=0)
    binarize.save(task, tmp_path / "net" / "model.safetensors", task="other")
    x = torch.randn(1, 3, 8, 12)
    again = binarize.from_pretrained(tmp_path / "net", network, task="other")
    assert torch.equal(again(x), task.eval()(x))
    both = binarize.from_pretrained(tmp_path / "net", network, task=["base", "other"], packed=True)
    assert list(both(x)) == ["base", "other"]
    with pytest.raises(FileError, match="it has no task 'another'"):
        binarize.from_pretrained(tmp_path / "net", network, task="another")


def test_folder_of_programs(student: nn.Module, tmp_path: Path) -> None:
    x = torch.randn(1, 3, 8, 12)
    packed = binarize.pack(student, example_inputs=x)
    binarize.save_pretrained(packed, tmp_path, description={"settings": SETTINGS})

    assert torch.equal(binarize.from_pretrained(tmp_path)(x), packed(x))
    text = (tmp_path / "README.md").read_text("utf-8")
    assert "packed for inference" in text
    assert "sky" in text
    assert "packed=True" not in text


def test_other_files_of_the_folder_are_kept(student: nn.Module, tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text("mine")
    binarize.save_pretrained(student, tmp_path)
    first = (tmp_path / "README.md").read_text("utf-8")
    binarize.save_pretrained(student, tmp_path, description={"settings": SETTINGS})

    assert names(tmp_path) == ["README.md", "log.txt", "model.safetensors"]
    assert "48×64" not in first
    assert "48×64" in (tmp_path / "README.md").read_text("utf-8")  # ours is replaced


def test_a_card_of_someone_else_is_kept(student: nn.Module, tmp_path: Path, hub: Hub) -> None:
    (tmp_path / "README.md").write_text("my own words")
    binarize.save_pretrained(student, tmp_path)
    hub.folder("me/net", None).mkdir(parents=True)
    (hub.folder("me/net", None) / "README.md").write_text("my own words")
    binarize.push_to_hub(student, "me/net")

    for folder in (tmp_path, hub.folder("me/net", None)):
        assert (folder / "README.md").read_text() == "my own words"
        assert (folder / "model.safetensors").is_file()


# The card


def test_card_says_what_the_file_knows(student: nn.Module, tmp_path: Path) -> None:
    binarize.save_pretrained(student, tmp_path / "net", description={"settings": SETTINGS})
    text = (tmp_path / "net" / "README.md").read_text("utf-8")
    plan, size = student.binarize_plan, (tmp_path / "net" / "model.safetensors").stat().st_size

    head = text.split("---\n")[1]
    assert "library_name: binarize\npipeline_tag: image-segmentation\ntags:\n- binarize\n" in head
    assert "\n# net\n" in text
    for row in (
        f"| file | {size:,} bytes |",
        f"| parameters in float | {plan.reference['params']:,} |",
        f"| 1-bit weights | {plan.binary_share:.1%} |",
        "| converted for inputs of | 1×3×16×16 |",
        "| size, rows × columns | 48×64 |",
        "| subtract the mean | 0.485, 0.456, 0.406 |",
        "| 0 | road | 0, 0, 255 |",
        r"| 1 | sky \| cloud | 128, 64, 0 |",
    ):
        assert f"\n{row}\n" in text, row
    assert f"{plan.reference['bytes']:,} bytes, {plan.reference['bytes'] / size:.1f} times" in text
    assert "policy `bidense`" in text
    assert "None" not in text


@pytest.mark.parametrize("known", [False, True])
def test_card_of_a_file_loads_it(
    known: bool, student: nn.Module, network: nn.Module, tmp_path: Path, hub: Hub
) -> None:
    if known:
        network = timm.create_model("test_resnet")
        student = binarize.convert(network, example_inputs=torch.zeros(1, 3, 32, 32)).eval()
    binarize.push_to_hub(student, "me/net")

    text = (hub.folder("me/net", None) / "README.md").read_text("utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S)
    space = {} if known else {"model": network}
    exec(code, space)
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(space["network"](x), student(x))
    assert isinstance(space["packed"], binarize.PackedNetwork)
    assert ("`model` is the float network" in text) != known


def test_card_does_not_list_a_whole_configuration() -> None:
    origin = {"library": "transformers", "name": "Net", "arguments": {"a": "x" * 300}}
    text = card.model_card({"origin": json.dumps(origin)}, 1234, "net")
    assert "| network | `transformers`: `Net(...)` |" in text


@pytest.mark.parametrize("name", ["imagenet", "symmetric", "none"])
def test_card_and_data_mean_the_same_normalization(name: str) -> None:
    assert card._NORMALIZATIONS[name] == normalisation(name)


@pytest.mark.parametrize(
    ("settings", "wanted", "absent"),
    [
        ({}, [], ["Preprocessing", "Classes", "pipeline_tag"]),
        (
            {"task": "depth", "max_depth": 10.0, "classes": [], "size": None},
            ["depth-estimation", "| largest depth | 10.0 |"],
            ["Classes", "rows"],
        ),
        ({"task": "multilabel", "classes": ["a"]}, ["| 0 | a |"], ["color", "pipeline_tag"]),
        ({"normalize": [[0.1, 0.2, 0.3], [1, 1, 1]]}, ["| 0.1, 0.2, 0.3 |"], []),
        ({"normalize": "later"}, ["| normalization | `later` |"], []),
    ],
)
def test_card_leaves_out_what_is_unknown(
    settings: dict[str, Any], wanted: list[str], absent: list[str]
) -> None:
    metadata = {"binarize_network": json.dumps({"settings": settings})}
    text = card.model_card(metadata, 1234, "net")
    assert all(part in text for part in wanted)
    assert not any(part in text for part in absent)


# The Hub


def test_push_then_load(student: nn.Module, network: nn.Module, hub: Hub) -> None:
    address = binarize.push_to_hub(student, "me/net", private=True, commit_message="First")

    assert address == "https://hub/me/net/commit/1"
    assert ("create_repo", {"private": True, "exist_ok": True}) in hub.calls
    assert ("upload_folder", {"commit_message": "First"}) in hub.calls
    assert names(hub.folder("me/net", None)) == ["README.md", "model.safetensors"]
    x = torch.randn(1, 3, 8, 8)
    assert torch.equal(binarize.from_pretrained("me/net", network)(x), student(x))


def test_revisions(student: nn.Module, network: nn.Module, hub: Hub) -> None:
    binarize.push_to_hub(student, "me/net")
    with torch.no_grad():
        student.head.bias += 1
    binarize.push_to_hub(student, "me/net", revision="v2")
    binarize.push_to_hub(student, "me/net", revision="v2")

    x = torch.randn(1, 3, 8, 8)
    first = binarize.from_pretrained("me/net", network)(x)
    second = binarize.from_pretrained("me/net", network, revision="v2", token="t")(x)
    torch.testing.assert_close(second, first + 1)
    assert hub.calls[-1][1]["token"] == "t"
    with pytest.raises(FileError) as error:
        binarize.from_pretrained("me/net", network, revision="v3")
    assert str(error.value).startswith("revision='v3': me/net on the Hub has no such branch")


# Errors


def rejected(call: Callable[[], object], kind: type[Exception] = FileError) -> str:
    with pytest.raises(kind) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", ["./gone", "/gone/net", "~/net", "a/b/c", Path("gone")])
def test_missing_folder(name: str | Path, hub: Hub) -> None:
    said = rejected(lambda: binarize.from_pretrained(name))
    assert said == f"source={str(name)!r}: there is no such folder; check the path"
    assert not hub.calls  # paths are not looked up on the Hub


def test_folder_without_a_network(tmp_path: Path) -> None:
    said = rejected(lambda: binarize.from_pretrained(tmp_path))
    assert (
        "this folder has no model.safetensors; give a folder that binarize.save_pretrained" in said
    )


def test_revision_of_a_folder(tmp_path: Path) -> None:
    said = rejected(lambda: binarize.from_pretrained(tmp_path, revision="v2"))
    assert said.startswith("revision='v2': ")


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
@pytest.mark.parametrize("remote", [False, True])
def test_network_of_another_library(
    metadata: dict[str, str] | None, remote: bool, tmp_path: Path, hub: Hub
) -> None:
    folder = hub.folder("me/other", None) if remote else tmp_path / "other"
    folder.mkdir(parents=True)
    save_file({"weight": torch.zeros(2)}, folder / "model.safetensors", metadata)
    said = rejected(lambda: binarize.from_pretrained("me/other" if remote else folder))
    assert "its model.safetensors does not hold a network of binarize; load it with its own" in said


def test_repository_without_a_network(hub: Hub) -> None:
    hub.folder("me/empty", None).mkdir(parents=True)
    said = rejected(lambda: binarize.from_pretrained("me/empty"))
    assert said.startswith("source='me/empty': this repository has no model.safetensors; ")


def test_no_such_repository(hub: Hub) -> None:
    said = rejected(lambda: binarize.from_pretrained("me/gone"))
    assert "there is no such folder, and no such repository on the Hub" in said


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (errors.LocalEntryNotFoundError, "the Hub is unreachable"),
        (errors.GatedRepoError, "you have no access to this repository"),
        (errors.HfHubHTTPError, "it cannot be downloaded (HfHubHTTPError: several lines)"),
        (OSError, "it cannot be downloaded (OSError: several lines)"),
    ],
)
def test_failed_download(
    kind: type[Exception], said: str, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **options: Any) -> str:
        raise _error(kind)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    assert said in rejected(lambda: binarize.from_pretrained("me/net"))


@pytest.mark.parametrize("name", ["no spaces here", "me/--", ""])
def test_not_a_repository(name: str, student: nn.Module, hub: Hub) -> None:
    wanted = "write 'user/name'" if name else "give a folder's name"
    assert wanted in rejected(lambda: binarize.from_pretrained(name))
    assert "write 'user/name'" in rejected(lambda: binarize.push_to_hub(student, name))
    assert not hub.calls


def test_failed_upload(student: nn.Module, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise _error(errors.HfHubHTTPError)

    monkeypatch.setattr(hub, "create_repo", fail)
    said = rejected(lambda: binarize.push_to_hub(student, "me/net"))
    assert said.startswith("repo_id='me/net': the Hub rejected the upload (HfHubHTTPError: several")


def test_nothing_is_made_for_a_network_that_cannot_be_saved(tmp_path: Path, hub: Hub) -> None:
    for call in (
        lambda: binarize.save_pretrained(nn.Conv2d(3, 3, 1), tmp_path / "new" / "net"),
        lambda: binarize.push_to_hub(nn.Conv2d(3, 3, 1), "me/net"),
    ):
        assert "binarize.convert did not make it" in rejected(call, ModelError)
    assert not list(tmp_path.iterdir())
    assert not hub.calls


def test_folder_that_is_a_file(student: nn.Module, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for call in (
        lambda: binarize.save_pretrained(student, tmp_path / "file"),
        lambda: binarize.from_pretrained(tmp_path / "file"),
    ):
        assert "this is a file" in rejected(call)
    assert "cannot be written to" in rejected(
        lambda: binarize.save_pretrained(student, tmp_path / "file" / "net")
    )
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("folder", [None, 3])
def test_not_a_path(folder: Any, student: nn.Module) -> None:
    assert "not a path" in rejected(lambda: binarize.save_pretrained(student, folder))
    assert "not a path" in rejected(lambda: binarize.from_pretrained(folder))


def test_without_the_hub_package(
    student: nn.Module, network: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **options: Any) -> Any:
        if name.startswith("huggingface_hub"):
            raise ImportError(name)
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    binarize.save_pretrained(student, tmp_path / "net")  # folders do without it
    binarize.from_pretrained(tmp_path / "net", network)
    for call in (
        lambda: binarize.from_pretrained("me/net"),
        lambda: binarize.push_to_hub(student, "me/net"),
    ):
        assert rejected(call, ModelError).endswith(
            "the Hub needs huggingface_hub; pip install huggingface_hub"
        )
