"""torchfab: launch distributed PyTorch training on machines that you reach by SSH."""

__version__ = "0.1.0"
