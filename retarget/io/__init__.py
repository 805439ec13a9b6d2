"""Reading what users bring. Nothing here ever unpickles."""
