"""The proxy's log: one event a line, safe to read in a terminal, and bounded."""
