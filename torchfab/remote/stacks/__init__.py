"""Stack dumps of the ranks on a node. Standard library only."""
