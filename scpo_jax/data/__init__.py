"""From data sources to one table of preferences, and from texts to token batches."""
