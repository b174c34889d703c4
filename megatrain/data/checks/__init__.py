"""What a person asks of a prepared folder or a stream: is it whole, what is in it, what will be read."""
