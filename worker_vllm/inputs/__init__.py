"""The inputs and outputs of the jobs of `run` and `runsync`, on every engine."""
