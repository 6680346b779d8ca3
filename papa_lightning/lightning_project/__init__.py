"""What is found in a Lightning project: its encoder, its train data, its step, its processes and its folder."""
