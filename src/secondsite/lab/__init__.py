"""Two sites on one machine, a guest with a workload, and the demo."""
