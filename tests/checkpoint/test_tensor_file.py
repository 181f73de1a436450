from __future__ import annotations

import pytest
import torch
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file

from taskloom.checkpoint import CheckpointError
from taskloom.checkpoint.tensor_file import DTYPES, raw_bytes, write_tensor_file


@st.composite
def tensors(draw):
    dtype = draw(st.sampled_from(list(DTYPES)))
    shape = draw(st.lists(st.integers(0, 4), max_size=3))
    raw = torch.tensor(
        draw(st.lists(st.integers(0, 1), min_size=torch.Size(shape).numel(), max_size=torch.Size(shape).numel())),
        dtype=torch.float32,
    )
    tensor = raw.reshape(shape).to(dtype)
    if draw(st.booleans()) and tensor.dim() > 1:
        tensor = tensor.transpose(0, 1)
    return tensor


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.text(min_size=1).filter(lambda name: name != "__metadata__"), tensors(), max_size=5))
def test_every_dtype_and_shape_reads_back_through_the_library(tmp_path_factory, named):
    path = tmp_path_factory.mktemp("t") / "x.safetensors"
    record = write_tensor_file(path, named, fsync=False)
    data = path.read_bytes()
    assert (record.bytes, record.xxh3_64) == (len(data), xxhash.xxh3_64_hexdigest(data))
    with safe_open(path, framework="pt") as file:
        read = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        assert file.metadata() == {"format": "pt"}
    assert read.keys() == named.keys()
    for name, tensor in named.items():
        assert read[name].dtype == tensor.dtype
        assert read[name].shape == tensor.shape
        assert raw_bytes(read[name]) == raw_bytes(tensor)
        assert read[name].data_ptr() % max(1, tensor.element_size()) == 0


def test_views_that_share_storage_are_each_written_in_full(tmp_path):
    base = torch.arange(12.0).view(3, 4)
    write_tensor_file(tmp_path / "x", {"base": base, "row": base[1], "turned": base.t(), "same": base}, fsync=False)
    read = load_file(tmp_path / "x")
    assert torch.equal(read["row"], base[1])
    assert torch.equal(read["turned"], base.t())
    assert torch.equal(read["same"], base)


def test_contiguous_cpu_tensors_are_not_copied():
    tensor = torch.zeros(8, requires_grad=True)
    view = raw_bytes(tensor)
    with torch.no_grad():
        tensor.fill_(1.0)
    assert bytes(view) == bytes(tensor.detach().view(torch.uint8))


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.zeros(2, dtype=torch.complex64), r"'w' cannot be saved.*keep torch\.view_as_real\(tensor\)"),
        (torch.eye(2).to_sparse(), r"'w' cannot be saved.*save tensor\.to_dense\(\)"),
        (torch.empty(2, device="meta"), r"'w' cannot be saved.*materialise it first"),
    ],
)
def test_what_the_format_lacks_is_refused_with_the_remedy(tmp_path, tensor, message):
    with pytest.raises(CheckpointError, match=message):
        write_tensor_file(tmp_path / "x", {"w": tensor}, fsync=False)
    assert not (tmp_path / "x").exists()
