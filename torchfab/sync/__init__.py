"""Copy the working directory to all hosts with rsync, then compare file hashes. Pure parts of `fab sync`."""
