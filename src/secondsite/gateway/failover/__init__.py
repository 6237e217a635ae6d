"""A machine taken over by this site, and the fencing of one that another site took over."""
