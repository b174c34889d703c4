"""One file per op: the plain reference and the fused form side by side.

Shape suffixes used here and in the model: B batch, S sequence, D hidden size, H heads, K head size, N tokens, V vocabulary.
"""
