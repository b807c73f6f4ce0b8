"""The proxy's log: one event per line, safe to display in a terminal, and bounded in size."""
