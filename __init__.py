"""signarium: a catalogue of what the signs of a transformer's hidden states encode."""
