"""The same handler under the stock Runpod SDK: the worker as Runpod's platform runs it, and the SDK's local modes."""
