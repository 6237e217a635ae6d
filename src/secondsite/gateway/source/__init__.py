"""The source's side: from a protected machine's changes to points at another site."""
