"""Making a catalogue and bringing an older one up to date (Alembic)."""
