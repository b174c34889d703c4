"""What a run reports of itself: metrics on disk, TensorBoard, lines on the console, and where it ran."""
