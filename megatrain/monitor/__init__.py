"""What a run says of itself: metrics on disk, TensorBoard, lines on the console, and where it ran."""
