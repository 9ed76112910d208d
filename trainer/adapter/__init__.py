"""What is trained beside the model's Linears, and how such Linears are computed."""
