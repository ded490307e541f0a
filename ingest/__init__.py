"""The jobs that fill a catalogue, and access to models in one place."""
