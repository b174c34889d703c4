"""Models in Hugging Face's format: their names, shapes and files, read and written."""
