"""The Slurm runtime: jobs that live in an allocation."""
