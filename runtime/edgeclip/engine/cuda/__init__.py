"""Running a graph on CUDA: page-locked memory, bound runs and CUDA graphs."""
