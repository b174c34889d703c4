"""One file per op: the plain reference and the fused form side by side.

Shape suffixes here and in the model: B batch, S sequence, N tokens, D hidden size, H heads, K head size, V vocabulary.
"""
