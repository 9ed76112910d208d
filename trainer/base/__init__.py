"""What everything stands on: `errors` (how a mistake is told, how content is named), `files` (written whole or not at
all), `remembered` (facts of files, valid while these do not change)."""
