"""Protection the other way round, onto what a machine left behind; and what follows a committed failover."""
