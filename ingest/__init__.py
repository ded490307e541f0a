"""The jobs that fill a catalogue: whatever runs a model."""
