"""What the page asks of us: /wantune/... on ComfyUI's own server.

Read-only but for stopping a run, saving a caption and deleting a run. Nothing here is needed to train.
"""
