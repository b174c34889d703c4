"""A prepared folder: what it holds, by which hashes, here or behind an address."""
