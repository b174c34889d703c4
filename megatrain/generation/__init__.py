"""Text from a causal model: sampling, a key-value cache, prompts of different lengths at once, on any layout."""
