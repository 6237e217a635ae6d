"""The replica: segments, the chain of points, views over a base."""
