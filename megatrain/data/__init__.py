"""From text to training batches: tokenizer, preparation, shards, order, loader. Import the modules themselves."""
