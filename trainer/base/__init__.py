"""What all other folders use: `errors` (the error shown to the user, the hash that names content), `files` (atomic
writes), `database` (SQLite files used as caches), `remembered` (facts about files, valid while these do not change)."""
