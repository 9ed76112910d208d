"""What training takes of a device's memory, and which plan fits."""
