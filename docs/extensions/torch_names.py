"""Links into torch's reference without a download: an inventory of the names that these pages and docstrings use.

Sphinx reads inventories (`objects.inv`) from the documentation they belong to, which needs a network at every build.
Ours is written from the table below. A name that is missing here is shown without a link, and
`tests/docs/test_site.py` holds that every name exists in torch.
"""

import zlib
from pathlib import Path

# Page of torch's reference, by name. `$` stands for the name itself, as in an inventory.
_GENERATED = "generated/$.html#$"
CLASSES = {
    "torch.Generator": _GENERATED,
    "torch.Tensor": "tensors.html#$",
    "torch.amp.GradScaler": "amp.html#$",
    "torch.autograd.detect_anomaly": "autograd.html#$",
    "torch.autograd.grad_mode.inference_mode": _GENERATED,
    "torch.device": "tensor_attributes.html#$",
    "torch.dtype": "tensor_attributes.html#$",
    "torch.nn.Module": _GENERATED,
    "torch.nn.Parameter": "generated/torch.nn.parameter.Parameter.html#torch.nn.parameter.Parameter",
    "torch.optim.Adam": _GENERATED,
    "torch.optim.AdamW": _GENERATED,
    "torch.optim.LBFGS": _GENERATED,
    "torch.optim.Optimizer": "optim.html#$",
    "torch.optim.SGD": _GENERATED,
    "torch.optim.lr_scheduler.LRScheduler": _GENERATED,
    "torch.optim.lr_scheduler.OneCycleLR": _GENERATED,
    "torch.optim.lr_scheduler.ReduceLROnPlateau": _GENERATED,
    "torch.utils.data.DataLoader": "data.html#$",
    "torch.utils.data.Dataset": "data.html#$",
    "torch.utils.data.IterableDataset": "data.html#$",
    "torch.utils.data.TensorDataset": "data.html#$",
}
# Where a class is defined, which is what a docstring's signature names, to the name it is documented under.
DEFINED_IN = {
    "torch.amp.grad_scaler.GradScaler": "torch.amp.GradScaler",
    "torch.nn.modules.module.Module": "torch.nn.Module",
    "torch.optim.optimizer.Optimizer": "torch.optim.Optimizer",
    "torch.utils.data.dataloader.DataLoader": "torch.utils.data.DataLoader",
    "torch.utils.data.dataset.Dataset": "torch.utils.data.Dataset",
}
FUNCTIONS = {
    "torch.autocast": "amp.html#$",
    "torch.compile": _GENERATED,
    "torch.manual_seed": _GENERATED,
    "torch.nn.utils.clip_grad_norm_": "generated/torch.nn.utils.clip_grad_norm_.html#$",
    "torch.use_deterministic_algorithms": _GENERATED,
}


def write_inventory(path: Path) -> Path:
    """Write the table as a Sphinx inventory (version 2) to `path` and return it."""
    rows = [(name, "class", page.replace("$", name)) for name, page in CLASSES.items()]
    rows += [(name, "class", CLASSES[known].replace("$", known)) for name, known in DEFINED_IN.items()]
    rows += [(name, "function", page.replace("$", name)) for name, page in FUNCTIONS.items()]
    body = "".join(f"{name} py:{role} 1 {page} -\n" for name, role, page in sorted(rows))
    header = "# Sphinx inventory version 2\n# Project: torch\n# Version: stable\n"
    header += "# The remainder of this file is compressed using zlib.\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header.encode() + zlib.compress(body.encode()))
    return path
