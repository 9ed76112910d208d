"""The user's settings, as frozen records validated on construction: `data` (which files, how they are cut), `training`
(adapter, noise levels, optimizer, validation), `presets` (starting points)."""
