"""The same handler under the Runpod SDK: as a worker on Runpod's platform, and in local modes."""
