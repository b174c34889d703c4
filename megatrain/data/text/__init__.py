"""Text, wherever it lies, as documents; documents as token ids."""
