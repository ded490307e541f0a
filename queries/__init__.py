"""Reading a catalogue: functions that return rows and print nothing."""
