"""The queue API: `/v2/{endpoint}/run` and related operations, compatible with Runpod's clients."""
