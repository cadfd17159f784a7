"""The same files on all hosts: rsync to each at once, then the proof."""
