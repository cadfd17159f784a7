"""A job on a Slurm cluster; runs on a host that has Slurm's commands. Standard library only."""
