"""Webhooks: the store's deliveries are carried out here, signed, and only to where they may go."""
