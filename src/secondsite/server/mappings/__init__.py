"""Which cloud's machines go to which, and where their networks and disks go there."""
