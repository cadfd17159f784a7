"""The section `torchfab` of Fabric's configuration, checked, and how hosts are reached."""
