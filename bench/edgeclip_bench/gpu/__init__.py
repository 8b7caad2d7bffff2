"""All checks that need a GPU, in one command."""
