"""Copies of files with rsync: `fab sync` to all hosts, `fab pull` from them. Pure, but for gitignore and processes."""
