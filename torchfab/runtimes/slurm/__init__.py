"""The Slurm runtime: jobs that run in a Slurm allocation."""
