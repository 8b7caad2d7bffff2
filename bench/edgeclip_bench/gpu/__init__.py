"""What only a GPU can show of a bundle's graphs; `bench/gpu_check.sh` runs it with all else that needs one."""
