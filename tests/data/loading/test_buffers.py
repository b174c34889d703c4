import numpy as np
import torch

from megatrain.data.loading.buffers import Buffers


def test_what_nobody_holds_is_handed_out_again():
    buffers = Buffers()
    first = buffers.take((4, 8), np.int64)
    address = first.ctypes.data
    del first
    assert buffers.take((4, 8), np.int64).ctypes.data == address
    assert buffers.take((4, 8), np.int32).ctypes.data != address


def test_an_array_a_view_and_a_tensor_each_keep_it():
    buffers = Buffers()
    holders = [
        buffers.take((4, 8), np.int64),
        buffers.take((4, 8), np.int64)[1:],
        torch.from_numpy(buffers.take((4, 8), np.int64)),
        torch.from_numpy(buffers.take((4, 8), np.int64).reshape(-1))[3:5].view(1, 2),
    ]
    for number, holder in enumerate(holders):
        holder[:] = number
    extra = buffers.take((4, 8), np.int64)
    extra[:] = 99
    for number, holder in enumerate(holders):
        assert (holder == number).all()
    assert len(buffers._arrays[(4, 8), np.dtype(np.int64)]) == 5
