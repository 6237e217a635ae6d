"""Replication policies of vaults: made, changed, copied, told to the items that use them."""
