"""A graph on CUDA: page-locked memory, bound runs, CUDA graphs."""
