"""`fab network`: measure the bandwidth and latency between the nodes, and find slow nodes and links.

Bandwidths are defined as in nccl-tests: algorithm bandwidth is bytes / time, bus bandwidth of an all-reduce of n ranks
is algorithm bandwidth * 2(n-1)/n (https://github.com/NVIDIA/nccl-tests/blob/master/doc/PERFORMANCE.md).
"""
