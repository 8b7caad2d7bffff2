"""What a bundle costs on this machine: random-weight checkpoints, rivals, latency and memory."""
