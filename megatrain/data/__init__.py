"""From text to training batches: text → preparation → folder → ordering → loading, and checks. Import the modules."""
