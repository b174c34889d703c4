"""Documents → a prepared folder: which are dropped, how blocks are filled, how shards are written."""
