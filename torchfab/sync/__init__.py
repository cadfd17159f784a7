"""Copy files with rsync: `fab sync` to all hosts, `fab pull` from them. Pure, except for gitignore and processes."""
