"""`fab network`: how fast the nodes reach each other, and which node or link is slow.

The bandwidths are those of nccl-tests: algorithm bandwidth is bytes / time, bus bandwidth of an all-reduce of n ranks
is algorithm bandwidth * 2(n-1)/n (https://github.com/NVIDIA/nccl-tests/blob/master/doc/PERFORMANCE.md).
"""
