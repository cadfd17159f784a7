"""A job on a Slurm cluster, run where Slurm's commands are. Standard library only."""
