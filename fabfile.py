"""The tasks of `fab` in this clone: those of torchfab/fabfile.py, one task per command. Add your own below."""

from torchfab.fabfile import *  # noqa: F403
