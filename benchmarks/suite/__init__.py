"""The comparison of this project with its peers: rows, rounds, figures and reports."""
