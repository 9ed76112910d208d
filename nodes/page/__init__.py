"""The server's side of the browser page: HTTP routes /wantune/... on ComfyUI's own server, and messages to the page.

`routes` registers the routes; `datasets` and `runs` answer them, `asking` checks requests and sends the answers,
`places` knows which folders the page may read. `live`, `progress_line` and `clip_progress` show what a node is doing,
`shown` remembers what nodes showed last.

The routes only read, but for stopping a run, saving a caption and deleting a run. No route is needed to train.
"""
