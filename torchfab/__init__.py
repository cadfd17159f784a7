"""torchfab: launch distributed PyTorch training on machines that you reach by SSH."""
