"""What a job's `input` may be, and what comes of it: the jobs of `run` and `runsync`, on every engine."""
