"""The queue API: `/v2/{endpoint}/run` and its sisters, as Runpod's clients speak it."""
