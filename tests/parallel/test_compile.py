"""What is compiled, counted without Inductor: one graph for all blocks, whatever the documents, and one per length."""

from collections import Counter

import pytest
import torch
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.utils import counters
from torch._functorch.partitioners import min_cut_rematerialization_partition

from megatrain.model.families.llama.module import Llama
from megatrain.model.families.llama.section import LlamaSection
from megatrain.parallel.activation_checkpointing import apply_activation_checkpointing
from megatrain.parallel.compile import compile_blocks

SECTION = LlamaSection(
    num_hidden_layers=6,
    hidden_size=64,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=96,
    vocab_size=128,
)
VARLEN, ON_CPU = torch.ops.torch_attn._varlen_attn.default, torch.ops.megatrain.document_attention.default


class Graphs:
    """A compiler that only counts: graphs, and the ops in them."""

    def __init__(self) -> None:
        self.forward: list[Counter] = []
        self.backward: list[Counter] = []
        self.backend = aot_autograd(
            fw_compiler=lambda graph, _: self._keep(self.forward, graph),
            bw_compiler=lambda graph, _: self._keep(self.backward, graph),
            partition_fn=min_cut_rematerialization_partition,
        )

    @staticmethod
    def _keep(kept: list[Counter], graph: torch.fx.GraphModule) -> torch.fx.GraphModule:
        kept.append(Counter(node.target for node in graph.graph.nodes if node.op == "call_function"))
        return graph


@pytest.fixture(autouse=True)
def afresh():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def compiled(device: str, checkpointing: str = "none") -> tuple[Llama, Graphs]:
    with torch.device("meta"):
        model = Llama(SECTION).to(torch.bfloat16)
    if device != "meta":
        model = model.to_empty(device=device)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
    graphs = Graphs()
    apply_activation_checkpointing(model, checkpointing)
    compile_blocks(model, graphs.backend)
    return model, graphs


def step(model: Llama, documents: list[int] | None, batch: int = 2, length: int = 32) -> None:
    device = model.embedding.weight.device
    ids = torch.zeros(batch, length, dtype=torch.int64, device=device)
    cu_seqlens = None if documents is None else torch.tensor(documents, dtype=torch.int32).to(device)
    model(ids, ids, cu_seqlens=cu_seqlens).backward()


# the meta device stands in for a GPU: it takes the same branches, and fails on anything that would wait for a value
@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
def test_blocks_share_one_graph_that_new_documents_do_not_change(device, checkpointing) -> None:
    model, graphs = compiled(device, checkpointing)
    for documents in ([0, 32, 64], [0, 7, 32, 64], [0, *range(3, 30), 32, 64], [0, 32, 40, 64]):
        step(model, documents)
    assert (len(graphs.forward), len(graphs.backward)) == (1, 1)
    assert not counters["graph_break"]
    attention = ON_CPU if device == "cpu" else VARLEN
    assert graphs.forward[0][attention] == 1
    assert graphs.backward[0][attention] == (1 if checkpointing == "full" else 0), "selective keeps its result"


def test_another_length_is_one_more_static_graph() -> None:
    model, graphs = compiled("cpu")
    for length in (32, 16, 32, 16):
        step(model, None, length=length)
    assert len(graphs.forward) == 2
    assert not any("sym_size" in str(op) for graph in graphs.forward for op in graph), "no size is symbolic"


def test_too_many_graphs_are_an_error_and_not_a_slow_run(monkeypatch) -> None:
    monkeypatch.setattr("megatrain.parallel.compile.RECOMPILE_LIMIT", 2)
    model, _ = compiled("cpu")
    for length in (8, 16):
        step(model, None, length=length)
    with pytest.raises(Exception, match="recompile_limit"):
        step(model, None, length=24)
