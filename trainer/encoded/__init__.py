"""What the encoders make of samples, and in which order it is trained on: `cache` (which file belongs to what content),
`store` (the files, with checksums), `fill` (encoding what is missing), `batches` (the order, and reading ahead)."""
