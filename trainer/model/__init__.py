"""The interface of a video model. Read `conditions` and `family` (the record of a model family), `wan21` and
`wan22` (families), `families` (the registry); then `adapters` with `adapter_kinds` (what is trained), `backend` (the
protocols that a model implements) and `text_padding` (Wan's padded text without its cost)."""
