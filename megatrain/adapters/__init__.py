"""Small modules that are trained in place of a model's own weights; a file or folder each, and what they register."""
