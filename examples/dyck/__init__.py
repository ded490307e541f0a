"""The toy family: bounded-depth Dyck-3 sequences and the two-block transformer that learns them."""
