"""What all other folders use: `errors` (the error shown to the user, the hash that names content), `files` (atomic
writes), `refusals` (what the file system refused, in a sentence), `tensors` (reading safetensors), `database` (SQLite
files used as caches), `remembered` (facts about files, valid while these do not change), `switches` (what packs set for
the whole process, put aside), `threads` (which never keep the program from ending)."""
