"""The machine below the process: control groups, NVIDIA's libraries, malloc."""
