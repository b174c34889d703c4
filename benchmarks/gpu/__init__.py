"""What only a GPU can tell, a module per question; `python -m benchmarks.gpu` runs them."""
