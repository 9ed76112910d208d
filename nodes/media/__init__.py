"""Pictures and videos that nodes make."""
