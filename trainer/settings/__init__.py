"""What the user decides, as frozen records that are checked once: `data` (which files, how they are cut), `training`
(adapter, noise levels, optimizer, validation), `presets` (starting points)."""
