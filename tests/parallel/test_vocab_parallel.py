import pytest
import torch
from torch import nn

from megatrain.parallel.vocab_parallel import make_embedding_vocab_parallel

VOCABULARY, WIDTH = 12, 5


@pytest.mark.parametrize("count", [1, 2, 3])
def test_slices_of_an_embedding_add_up_to_the_whole(count) -> None:
    torch.manual_seed(0)
    whole = nn.Embedding(VOCABULARY, WIDTH)
    ids = torch.randint(0, VOCABULARY, (3, 7))
    upstream = torch.randn(3, 7, WIDTH)
    slices = []
    for rank in range(count):
        part = nn.Embedding(VOCABULARY // count, WIDTH, _weight=whole.weight.detach().chunk(count)[rank].clone())
        make_embedding_vocab_parallel(part, rank)
        slices.append(part)

    total = sum(part(ids) for part in slices)

    assert torch.equal(total, whole(ids))
    total.backward(upstream)
    whole(ids).backward(upstream)
    torch.testing.assert_close(torch.cat([part.weight.grad for part in slices]), whole.weight.grad)


def test_ids_of_other_slices_give_zeros_and_no_gradient() -> None:
    part = nn.Embedding(4, WIDTH)
    make_embedding_vocab_parallel(part, rank=1)  # holds 4 … 7
    out = part(torch.tensor([[0, 3, 8, 11]]))
    assert (out == 0).all()
    out.sum().backward()
    assert (part.weight.grad == 0).all()
