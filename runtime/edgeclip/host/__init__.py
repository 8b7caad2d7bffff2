"""The machine that the process runs on: control groups, NVIDIA's libraries, malloc, the installation of edgeclip."""
