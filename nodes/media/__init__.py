"""What nodes show: `sampling` (the one way videos are sampled and decoded), `previewer` (while a run goes on), `cells`
and `grid` (Compare Checkpoints), `side_by_side` (Compare Videos), `strips`, `pictures` and `videos` (files)."""
