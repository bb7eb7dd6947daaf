"""One safetensors file per network: binary weights as bits, the plan in the header."""

from binarize.file.contents import Contents, float_contents, network_contents
from binarize.file.hub import from_pretrained, push_to_hub, save_pretrained
from binarize.file.load import load
from binarize.file.save import save
from binarize.file.tasks import SharedTask, remove_task, tasks

__all__ = [
    "Contents",
    "SharedTask",
    "float_contents",
    "from_pretrained",
    "load",
    "network_contents",
    "push_to_hub",
    "remove_task",
    "save",
    "save_pretrained",
    "tasks",
]
