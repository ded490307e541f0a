"""The database: schema, opening and locking, sign codes, bulk load, Hamming index, integrity."""
