"""Webhooks: signed deliveries of the ends of jobs, to public or explicitly allowed receivers."""
