"""Prompt and response examples: read, rendered by a chat template, packed into sequences, and loaded exactly."""
