"""The machine under a rank: its device, its health, and how fast it multiplies, copies and communicates."""
