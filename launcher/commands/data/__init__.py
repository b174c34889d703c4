"""Turn text into token shards, and look at them."""
