"""From a dataset folder to samples. Start at `scan`: it walks a `folder`, reads `facts` of each file (`pictures`,
`video`, `animations`), its `captions`, `masks` and `controls`, chooses `buckets` and `windows`, and returns a
`manifest` of samples with `notes`. `report` shows the manifest; `thumbnails` and `caption_edit` serve the page."""
