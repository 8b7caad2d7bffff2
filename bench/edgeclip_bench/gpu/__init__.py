"""Everything that wants a GPU, in one command."""
