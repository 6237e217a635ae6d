"""What every layer stands on: errors, time, durable files, limits, crash points."""
