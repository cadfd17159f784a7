"""One module for each `fab` command, called by fabfile.py."""
