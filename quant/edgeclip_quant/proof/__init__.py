"""What a smaller bundle lost, measured."""
