"""The host itself: GPUs, disks, kernel, network, interpreter. Standard library only."""
