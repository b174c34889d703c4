"""The main job from text to a fine-tuned model, on the text that Python itself ships: `make quickstart`."""
