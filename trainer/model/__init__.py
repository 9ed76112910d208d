"""What a video model is to a trainer. Read `conditions` and `family` (the record of a family), `wan21` (one of them),
`families` (the list); then `adapters` with `adapter_kinds` (what is trained), `backend` (what a model must offer) and
`text_padding` (Wan's padded text without its cost)."""
