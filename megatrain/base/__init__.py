"""What every part of megatrain uses. Free of torch and numpy; imports nothing of megatrain but its errors."""
