"""Values, tables and charts as text."""

TABLE_ROWS = 1000
"""What `table` shows at most: beyond it nobody reads, and its columns must be held to align."""
