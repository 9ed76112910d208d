"""What a dataset folder becomes. Start at `scan`: it walks a `folder`, reads `facts` of each file (`pictures`, `video`,
`animations`), its `captions` and `masks`, chooses `buckets` and `windows`, and gives a `manifest` of samples with
`notes`. `report` shows it; `thumbnails` and `caption_edit` serve the page."""
