"""The door: reads options, prints what happens. Nothing here decides anything."""
