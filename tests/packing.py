"""What every family promises of packed documents."""

from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from megatrain.huggingface.config_json import read_pretrained
from megatrain.huggingface.names import from_huggingface
from megatrain.model.build import build_model


@torch.no_grad()
def check_packed(theirs: PreTrainedModel, folder: Path, ids_BS: Tensor) -> None:
    """A document's logits do not move with the documents beside it, and are as if it were alone.

    Args:
        theirs: whose weights our model takes.
        folder: where its config.json may be written.
        ids_BS: [2, 12], of a vocabulary of 64.
    """
    theirs.config.save_pretrained(folder)
    section, _ = read_pretrained(folder)
    model = build_model(section)
    model.load_state_dict(from_huggingface(dict(theirs.named_parameters()), section), strict=False)
    cu_seqlens = torch.tensor([0, 5, 12, 17, 24], dtype=torch.int32)
    positions = torch.cat([torch.arange(5), torch.arange(7)]).expand(2, -1)
    packed = model(ids_BS, position_ids_BS=positions, cu_seqlens=cu_seqlens)
    torch.testing.assert_close(packed, torch.cat([model(ids_BS[:, :5]), model(ids_BS[:, 5:])], 1))
    for changed, kept in ((slice(0, 5), slice(5, 12)), (slice(5, 12), slice(0, 5))):
        other = ids_BS.clone()
        other[:, changed] = 2 + (other[:, changed] - 1) % 60
        after = model(other, position_ids_BS=positions, cu_seqlens=cu_seqlens)
        assert torch.equal(after[:, kept], packed[:, kept])
        assert not torch.isclose(after[:, changed], packed[:, changed]).all()
    changed = (ids_BS + torch.tensor([1] * 5 + [0] * 7)) % 64  # one document: without bounds it moves the next
    assert not torch.isclose(model(changed), model(ids_BS))[:, 5:].all()
