"""Documents → a prepared folder: which are left out, how blocks are filled, how shards are written."""
