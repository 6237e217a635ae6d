"""What people have done with machines, as jobs: each step asks a gateway, in the job's epoch."""
