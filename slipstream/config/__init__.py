"""The job file: its model (`job`), its presets (`presets`) and its reader (`load`)."""
