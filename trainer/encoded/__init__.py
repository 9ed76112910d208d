"""Latents and conditions on disk, and the order in which training takes them: `cache` (which file belongs to what
content), `store` (the files, with checksums), `fill` (encodes what is missing), `batches` (order and reading ahead)."""
