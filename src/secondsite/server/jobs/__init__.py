"""The durable job engine: an operation is a job of steps that survives the death of any server.

`definitions` say what a job does, `service` starts and steers jobs, `worker` carries them out, `states` is
the table of what may follow what. docs/jobs.md tells how they hold together.
"""
