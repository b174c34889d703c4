"""The verbs of `megatrain`, a file each: its options, its help, and what it prints. `launcher/cli.py` lists them."""
