"""Tests; tests/ mirrors torchfab/, tests/integration/ runs real sshd, tmux and the like."""
